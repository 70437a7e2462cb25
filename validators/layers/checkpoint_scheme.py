"""What a checkpoint's config.json says of its quantization: its name in engines, or the field that differs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from validators.tensor_file import CheckpointError

PTPC = "fp8_per_token"
GROUPS = "quantization_config.config_groups"


def quant_format(config: Mapping[str, Any]) -> str:
    """What a serving engine calls the linears' quantization: ``fp8_per_token``, ``fp8`` (blocks), ``mxfp4``, ``""``.

    config: a model's config.json. ``fp8_per_token`` only for compressed-tensors W8A8 FP8 with a symmetric static
    scale per channel of the weight and a symmetric dynamic scale per token of the activations. Raises CheckpointError
    for anything that none of the four names describes, with the field that decides.
    """
    quant = config.get("quantization_config") or config.get("compression_config")
    if not quant:
        return ""
    if not isinstance(quant, Mapping):
        raise CheckpointError(f"config.json: quantization_config is {_short(quant)}, wanted is a table of settings")
    method = quant.get("quant_method")
    if method == "fp8" and quant.get("weight_block_size"):
        return "fp8"
    if method in ("mxfp4", "quark") and "fp4" in json.dumps(quant):
        return "mxfp4"
    if method != "compressed-tensors":
        raise _refusal("quantization_config.quant_method", method, "'compressed-tensors'")
    return _compressed_tensors(quant)


def not_ptpc(config: Mapping[str, Any]) -> str:
    """One sentence why the linears are not FP8 by channel and token, or nothing where they are."""
    quant = config.get("quantization_config") or config.get("compression_config")
    if not quant:
        return "config.json has no quantization_config: the linears are not quantized"
    if quant_format(config) == PTPC:
        return ""
    if quant.get("quant_method") != "compressed-tensors":
        return str(_refusal("quantization_config.quant_method", quant.get("quant_method"), "'compressed-tensors'"))
    for name, group in _groups(quant).items():
        for field, value, wanted in _differences(name, group):
            return str(_refusal(field, value, wanted))
    return "the quantization is another"


def _compressed_tensors(quant: Mapping[str, Any]) -> str:
    """All groups must be of one scheme: they differ in the layers that they name, which the tensors say themselves."""
    groups = _groups(quant)
    names: dict[str, str] = {}
    for key, group in groups.items():
        stored = group.get("format") or quant.get("format")
        if stored != "float-quantized":
            place = f"{GROUPS}.{key}.format" if group.get("format") else "quantization_config.format"
            raise _refusal(place, stored, "'float-quantized'")
        names[key] = _scheme(key, group)
    if len(set(names.values())) > 1:
        words = ", ".join(f"{key} {name}" for key, name in names.items())
        raise CheckpointError(f"config.json: {GROUPS} are of several schemes ({words}); one is walked at a time")
    return next(iter(names.values()))


def _groups(quant: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    groups = quant.get("config_groups")
    if not isinstance(groups, Mapping) or not groups or not all(isinstance(g, Mapping) for g in groups.values()):
        raise _refusal(GROUPS, groups, "a table of at least one group")
    return {str(key): group for key, group in groups.items()}


def _scheme(name: str, group: Mapping[str, Any]) -> str:
    found = list(_differences(name, group))
    if not found:
        return PTPC
    field, value, wanted = found[0]
    blocks = f"{GROUPS}.{name}.weights.strategy"
    if field == blocks and value in ("block", "group"):
        return "fp8"
    raise _refusal(field, value, wanted)


def _differences(name: str, group: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """(field, value, what is wanted) of everything by which a group is not PTPC FP8; types first, then scales."""
    parts = ("weights", "input_activations")
    scales = {
        "weights": (("strategy", "channel", None), ("dynamic", False, False)),
        "input_activations": (("strategy", "token", None), ("dynamic", True, None)),
    }
    number = (("num_bits", 8, None), ("type", "float", None), ("symmetric", True, True))
    for part in parts:
        if not isinstance(group.get(part), Mapping):
            yield f"{GROUPS}.{name}.{part}", group.get(part), "8-bit float"
            return
    for wanted in (number, None):
        for part in parts:
            for field, value, default in wanted or scales[part]:
                found = group[part].get(field, default)
                found = default if found is None else found
                if found != value or isinstance(found, bool) != isinstance(value, bool):
                    yield f"{GROUPS}.{name}.{part}.{field}", found, repr(value)


def _refusal(field: str, value: object, wanted: str) -> CheckpointError:
    return CheckpointError(f"config.json: {field} is {_short(value)}, and this walk takes {wanted}")


def _short(value: object) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

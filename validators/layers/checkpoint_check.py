"""Whether a checkpoint holds what its config.json describes, known from its index and the headers of its files.

A walk meets a tensor when it arrives at its layer, which takes minutes in a large model. Names, types and shapes are
all in the headers, so they are held against the model before the first layer: what is missing, of another shape, or of
a type that one linear cannot have, is one sentence at the start.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from reference.glm4_moe import Config
from validators.tensor_file import CheckpointError, Entry

FP8 = "F8_E4M3"
FLOATS = ("BF16", "F16", "F32")
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
EXPERT_STEPS = ("gate/up_proj", "down_proj")
MOST_NAMES = 3
MOST_COUNTED = 1000
"""Missing names that are counted: a config.json of another model lacks all of them, and may claim any number."""


class Group(NamedTuple):
    """Linears that are one product in an engine (q, k and v; gate and up). outs: output channels of each."""

    prefix: str
    names: tuple[str, ...]
    outs: tuple[int, ...]
    inner: int
    bias: bool = False

    @property
    def parts(self) -> list[str]:
        return [f"{self.prefix}.{name}_proj" for name in self.names]


def linears(config: Config, layer: int) -> Iterator[Group]:
    """Every group of linears of a layer; the experts' last."""
    c, p = config, f"model.layers.{layer}"
    yield Group(f"{p}.self_attn", ("q", "k", "v"), c.qkv_sizes(), c.hidden, c.attention_bias)
    yield Group(f"{p}.self_attn", ("o",), (c.hidden,), c.heads * c.head_dim)

    def mlp(prefix: str, width: int) -> Iterator[Group]:
        yield Group(prefix, ("gate", "up"), (width, width), c.hidden)
        yield Group(prefix, ("down",), (c.hidden,), width)

    if layer < c.first_dense:
        yield from mlp(f"{p}.mlp", c.intermediate)
        return
    if c.shared_experts:
        yield from mlp(f"{p}.mlp.shared_experts", c.moe_intermediate * c.shared_experts)
    for expert in range(c.experts):
        yield from mlp(f"{p}.mlp.experts.{expert}", c.moe_intermediate)


def others(config: Config, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of the tensors of a layer that belong to no linear."""
    c, p = config, f"model.layers.{layer}"
    yield f"{p}.input_layernorm.weight", (c.hidden,)
    yield f"{p}.post_attention_layernorm.weight", (c.hidden,)
    if c.qk_norm:
        yield f"{p}.self_attn.q_norm.weight", (c.head_dim,)
        yield f"{p}.self_attn.k_norm.weight", (c.head_dim,)
    if layer >= c.first_dense:
        yield f"{p}.mlp.gate.weight", (c.experts, c.hidden)
        yield f"{p}.mlp.gate.e_score_correction_bias", (c.experts,)


def outer(config: Config, *, tied: bool, whole: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of the tensors around the layers. whole: the walk goes to the logits."""
    yield EMBEDDING, (config.vocab, config.hidden)
    if whole:
        yield NORM, (config.hidden,)
        if not tied:
            yield HEAD, (config.vocab, config.hidden)


def needed(config: Config, layers: int, *, tied: bool) -> Iterator[str]:
    """Names that a walk of the first ``layers`` layers reads, without the scales, which only FP8 weights have."""
    yield from (name for name, _ in outer(config, tied=tied, whole=layers == config.layers))
    for layer in range(layers):
        yield from (name for name, _ in others(config, layer))
        for group in linears(config, layer):
            for part in group.parts:
                yield f"{part}.weight"
                if group.bias:
                    yield f"{part}.bias"


def check(config: Config, entries: Mapping[str, Entry], layers: int, *, tied: bool) -> list[str]:
    """Hold the entries against the model; the groups whose weights are not quantized, as ``PREFIX.gate/up_proj``.

    entries: at least what ``needed`` names, and the scales. The experts of a layer must be alike. Raises
    CheckpointError with one sentence.
    """
    plain: list[str] = []
    for name, shape in outer(config, tied=tied, whole=layers == config.layers):
        check_shape(name, entries[name], shape)
        if name == HEAD and entries[name].dtype == FP8:
            check_scale(HEAD, entries, config.vocab)
    for layer in range(layers):
        for name, shape in others(config, layer):
            check_shape(name, entries[name], shape)
            if entries[name].dtype not in FLOATS:
                raise CheckpointError(f"{name} has type {entries[name].dtype}, expected {' or '.join(FLOATS)}")
        for group in linears(config, layer):
            if check_group(group.parts, entries) != FP8:
                plain.append(f"{group.prefix}.{'/'.join(group.names)}_proj")
            for part, out in zip(group.parts, group.outs, strict=True):
                check_shape(f"{part}.weight", entries[f"{part}.weight"], (out, group.inner))
                if group.bias:
                    check_shape(f"{part}.bias", entries[f"{part}.bias"], (out,))
        for step in EXPERT_STEPS:
            number = len(of_experts(plain, layer, step))
            if number not in (0, config.experts):
                raise CheckpointError(
                    f"model.layers.{layer}.mlp.experts: {number} of {config.experts} {step} are not quantized and the "
                    f"others are FP8; the walk takes experts of one kind per layer"
                )
    return plain


def of_experts(plain: Sequence[str], layer: int, step: str) -> list[str]:
    """Those of a layer's experts; step: ``gate/up_proj`` or ``down_proj``."""
    return [n for n in plain if n.startswith(f"model.layers.{layer}.mlp.experts.") and n.endswith(f".{step}")]


def check_group(parts: Sequence[str], entries: Mapping[str, Entry]) -> str:
    """The type of the weights of linears that are one product: FP8 with a scale a channel, or one float type."""
    kinds = {part: entries[f"{part}.weight"].dtype for part in parts}
    for part, kind in kinds.items():
        if kind not in (FP8, *FLOATS):
            raise CheckpointError(
                f"{part}.weight has type {kind}, expected {FP8}, or {' or '.join(FLOATS)} unquantized"
            )
    first = parts[0]
    if other := next((p for p in parts if kinds[p] != kinds[first]), None):
        prefix, _, name = first.rpartition(".")
        words = f"{name} is {_said(kinds[first])} and {other.rpartition('.')[2]} {_said(kinds[other])}"
        raise CheckpointError(f"{prefix}: {words}; one linear needs one type")
    if kinds[first] == FP8:
        for part in parts:
            check_scale(f"{part}.weight", entries, entries[f"{part}.weight"].shape[0])
    return kinds[first]


def check_scale(weight: str, entries: Mapping[str, Entry], channels: int) -> None:
    """The scale of an FP8 weight: one a channel, stored as [N, 1] or [N]."""
    name = f"{weight}_scale"
    if name not in entries:
        raise CheckpointError(f"{weight} is FP8 and the checkpoint holds no tensor {name!r}")
    if entries[name].dtype not in FLOATS:
        raise CheckpointError(f"{name} has type {entries[name].dtype}, expected {' or '.join(FLOATS)}")
    if entries[name].shape not in ((channels, 1), (channels,)):
        raise CheckpointError(f"{name} has shape {list(entries[name].shape)}, expected [{channels}, 1]")


def check_shape(name: str, entry: Entry, shape: tuple[int, ...]) -> None:
    if entry.shape != shape:
        raise CheckpointError(f"{name} has shape {list(entry.shape)}, expected {list(shape)} by config.json")


def missing(what: str, names: Sequence[str]) -> CheckpointError:
    """``holds no tensor 'a'`` with how many more; what: the sentence before the name."""
    many = f"more than {MOST_COUNTED:,}" if len(names) > MOST_COUNTED else f"{len(names):,}"
    more = f" ({many} are missing, also {', '.join(map(repr, names[1:MOST_NAMES]))})" if len(names) > 1 else ""
    return CheckpointError(f"{what} {names[0]!r}{more}")


def listed(plain: Sequence[str]) -> str:
    """Names of linears, those of experts as one: ``model.layers.0.self_attn.o_proj, 16 of experts``."""
    own = [name for name in plain if ".experts." not in name]
    experts = len(plain) - len(own)
    words = [*own[:MOST_NAMES], *([f"{len(own) - MOST_NAMES} more"] if len(own) > MOST_NAMES else [])]
    return ", ".join([*words, *([f"{experts} of experts"] if experts else [])])


def grouped(where: Mapping[str, str], names: Sequence[str]) -> dict[str, list[str]]:
    """file -> names in it."""
    found = sorted((where[name], name) for name in names)
    return {file: [name for _, name in rows] for file, rows in itertools.groupby(found, key=lambda row: row[0])}


def _said(dtype: str) -> str:
    return "FP8" if dtype == FP8 else dtype

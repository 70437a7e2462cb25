"""Legitimate variants: executions that a contract allows and that differ in low bits.

Each must pass wherever its contract is judged; one that fails is a false alarm of the suite.
"""

from __future__ import annotations

import dataclasses

from reference.contract import NORM_QUANT_CONTRACTS
from validators.kernels.emulated_variant import Variant, illegal

_ORDERS = {
    "tree": Variant(),
    "tree-adjacent": Variant(adjacent=True),
    "chunks": Variant(order="chunks"),
    "chunks-8": Variant(order="chunks", chain=8),
    "chunks-reversed": Variant(order="chunks", arrangement="reversed"),
    "chunks-permuted": Variant(order="chunks", chain=24, arrangement="permuted", adjacent=True),
    "chunks-fma": Variant(order="chunks", fma=True),
    "lanes-256": Variant(order="lanes", lanes=256),
    "lanes-1024-fma": Variant(order="lanes", lanes=1024, fma=True),
    "lanes-64-reversed": Variant(order="lanes", lanes=64, arrangement="reversed"),
    "torch-sum": Variant(order="torch_sum"),
}

_STEPS: dict[str, dict[str, object]] = {
    "mean-multiply": {"mean": "multiply"},
    "rsqrt-native": {"rsqrt": "native"},
    "rsqrt-nearest": {"rsqrt": "nearest"},
    "rsqrt-up": {"rsqrt": "up"},
    "rsqrt-down": {"rsqrt": "down"},
    "rsqrt-ulp-up": {"rsqrt": "ulp_up"},
    "rsqrt-ulp-down": {"rsqrt": "ulp_down"},
    "weight-first": {"product": "weight_first"},
    "scale-ulp-up": {"scale": "ulp_up"},
    "scale-ulp-down": {"scale": "ulp_down"},
    "reciprocal-up": {"reciprocal": "up"},
    "reciprocal-down": {"reciprocal": "down"},
    "reciprocal-ulp-up": {"reciprocal": "ulp_up"},
    "reciprocal-ulp-down": {"reciprocal": "ulp_down"},
    # Errors of one sign throughout, the worst case of every budget.
    "all-up": {"mean": "multiply", "rsqrt": "up", "scale": "ulp_up", "reciprocal": "ulp_up"},
    "all-down": {"mean": "multiply", "rsqrt": "down", "scale": "ulp_down", "reciprocal": "ulp_down"},
    "flush": {"flush": True},
    "hardware": {"mean": "multiply", "rsqrt": "down", "reciprocal": "up", "product": "weight_first"},
}


def legitimate_variants(contract_name: str) -> list[Variant]:
    """Named variants that the preset ``contract_name`` allows, the default first.

    Every order of summation alone; every other freedom on a tree and on the longest serial chains.
    Raises KeyError for an unknown preset.
    """
    contract = NORM_QUANT_CONTRACTS[contract_name]
    found = [dataclasses.replace(v, name=name) for name, v in _ORDERS.items()]
    for base in ("tree", "chunks-fma"):
        found += [
            dataclasses.replace(_ORDERS[base], name=f"{base}+{name}", **changes)  # type: ignore[arg-type]
            for name, changes in _STEPS.items()
        ]
    return [variant for variant in found if illegal(contract, variant) is None]

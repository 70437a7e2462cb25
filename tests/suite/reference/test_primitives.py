"""Every operation that emulated kernels, inputs and reference are made of, against values rounded right by integers.

Three tests. One runs all of that code and looks at what reaches PyTorch: an operation that is in no list below fails by
name. One holds every rounding operation in the list against exact values on the machine at hand, by name. The last one
plants wrong operations, so that the second is known to see them. ``torch.sqrt`` is why: MKL's is one ulp off for 0.5 %
to 17 % of all values, depending on the CPU, and nobody had looked.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from golden import sets, truth
from reference import formats
from reference.contract import NORM_QUANT_CONTRACTS
from tests.support.exact import nearest, numbers, root, ties
from validators.cases.case import Case
from validators.cases.inputs import build
from validators.cases.recipes import reasons_impossible, recipe_names
from validators.kernels import emulated, emulated_rounding
from validators.kernels.emulated_variant import Variant
from validators.words import OPS

# ---- what is used

_EXACT = """
    abs alias amax amin aminmax as_strided bucketize cat ceil clamp clamp_max_ clamp_min clamp_min_ clone
    constant_pad_nd contiguous copysign detach detach_ empty empty_like eq expand fill_ flatten floor frexp full
    full_like gather ge gt index index_put index_put_ index_select isfinite isnan item le lift_fresh lt masked_fill
    masked_fill_ max maximum min minimum nan_to_num nan_to_num_ ne neg new_empty new_full new_zeros numpy_T ones
    ones_like permute repeat reshape resolve_conj resolve_neg round scalar_tensor scatter_ select sign signbit slice
    split split_with_sizes squeeze stack t to_dtype_layout transpose trunc unbind unsqueeze view where zeros
    zeros_like _local_scalar_dense _unsafe_view _reshape_alias nonzero any all
"""
EXACT = frozenset(_EXACT.split())
"""Operations whose result is one of their operands, a comparison, or a value that the format holds."""
_ROUNDING = "add add_ sub sub_ rsub mul mul_ div div_ reciprocal copy_ _to_copy to"
ROUNDING = frozenset(_ROUNDING.split())
"""Operations that round: add, subtract, multiply, divide, and conversions between formats."""
BOUNDED = {
    "emulated": {
        ("sqrt", "float64"): "an estimate that square_root and reciprocal_root correct",
        ("mm", "float64"): "groups of 32 products, whose sums float64 holds exactly in any order",
        ("matmul", "float64"): "groups of 32 products, whose sums float64 holds exactly in any order",
        ("mm", "float32"): "emulated/fp32, whose contract admits every order; no golden",
        ("matmul", "float32"): "emulated/fp32, whose contract admits every order; no golden",
    },
    "reference": {
        ("sqrt", "float64"): "within budgets.FLOAT64_SLACK",
        ("linalg_vector_norm", "float64"): "the largest magnitude is exact, a root of a sum is within FLOAT64_SLACK",
        ("linalg_vector_norm", "float32"): "as above, summed in float64",
        ("mm", "float64"): "FP8 products, whose sums float64 holds exactly in any order up to EXACT_K",
        ("matmul", "float64"): "FP8 products, whose sums float64 holds exactly in any order up to EXACT_K",
        ("mm", "float32"): "sum|a*b|, an upper bound widened by gamma_K",
        ("matmul", "float32"): "sum|a*b|, an upper bound widened by gamma_K",
    },
    "inputs": {},
}
"""Operations of a library that are used on purpose, and why their bits do not matter."""


class _Watch(TorchDispatchMode):
    """Collects (name, dtype of the first floating operand) of every operation with a floating operand or result."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, str]] = set()
        self.divisors: set[float] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor) and x.is_floating_point()]
        if tensors:
            self.seen.add((func.overloadpacket.__name__, str(tensors[0].dtype).removeprefix("torch.")))
        if func.overloadpacket.__name__ in ("div", "div_") and not isinstance(args[1], Tensor):
            self.divisors.add(float(args[1]))
        return out


def _cases() -> Iterator[Case]:
    for op in OPS:
        for name in recipe_names(op):
            for fp8, dtype in (("e4m3fn", "bf16"), ("e4m3fnuz", "fp16")):
                size: dict[str, Any] = {"n": 16, "k": 72} if op == "ptpc_gemm" else {"n": 264}
                case = Case(op, 8, recipe=name, fp8=fp8, dtype=dtype, **size)
                if reasons_impossible(case) is None:
                    yield case


def _use(area: str) -> None:
    """Runs what belongs to an area: every recipe, every emulated kernel and some variants, every contract's truth."""
    if area == "inputs":
        for case in _cases():
            build(case)
    elif area == "reference":
        for name in sets.REFERENCE_CASES:
            truth.compute(Case.parse(name))
    else:
        rooted = [Variant(rsqrt=kind) for kind in ("nearest", "up", "ulp_down")]
        free = [Variant(order="chunks", fma=True, scale="up", reciprocal="down", mean="multiply"), *rooted]
        for case in _cases():
            if case.recipe not in ("gaussian", "nonfinite", "zero_rows", "random_bytes"):
                continue
            inputs = build(case)
            for kernel in emulated.kernels():
                if kernel.op == case.op and kernel.unsupported(case) is None:
                    kernel.call(inputs, None)
            if case.op == "add_rmsnorm_quant":
                for variant in free:
                    for contract in NORM_QUANT_CONTRACTS.values():
                        emulated.execute(inputs, None, contract, variant)


@pytest.mark.parametrize("area", list(BOUNDED))
def test_no_operation_is_used_that_no_list_knows(area: str) -> None:
    for cached in (formats.decode_table, formats.code_preimages, formats._upward_thresholds):
        cached.cache_clear()
    with _Watch() as watch:
        _use(area)
    assert len(watch.seen) > 20
    unknown = [
        f"{name} ({dtype})"
        for name, dtype in sorted(watch.seen)
        if name not in EXACT | ROUNDING and (name, dtype) not in BOUNDED[area]
    ]
    assert not unknown, f"{area} use operations that no list of this file knows: {', '.join(unknown)}"
    if area != "reference":
        # CUDA multiplies by the rounded reciprocal of a number. The reference rounds such a quotient to fp32.
        assert not {d for d in watch.divisors if math.frexp(d)[0] != 0.5}


def test_the_watch_sees_a_square_root_that_nobody_has_listed_and_a_division_by_a_number() -> None:
    with _Watch() as watch:
        torch.ones(2).sqrt()
        torch.ones(2) / 3.0
    assert ("sqrt", "float32") in watch.seen
    assert watch.divisors == {3.0}
    assert not any("sqrt" in known for known in EXACT | ROUNDING)
    assert not any(("sqrt", "float32") in known for known in BOUNDED.values())


# ---- right or wrong on this machine

COUNT = 1500
_B = numbers(torch.bfloat16, COUNT, 1)
_H = numbers(torch.float16, COUNT, 2)
_F, _G = numbers(torch.float32, COUNT, 3), numbers(torch.float32, COUNT, 4)
_D, _E = numbers(torch.float64, COUNT, 5), numbers(torch.float64, COUNT, 6)
_POSITIVE = torch.cat([_F.abs(), torch.arange(1, 400, dtype=torch.int32).view(torch.float32), _F.abs() ** 0.0 * 4.0])

Exact = Callable[..., float]


def _wrong(got: Tensor, exact: list[float]) -> int:
    """How many elements of ``got`` are not the exact value (a zero of either sign is zero)."""
    want = torch.tensor(exact, dtype=torch.float64, device="cpu")
    return int((got.cpu().double() != want).sum())


def _check(run: Callable[..., Tensor], exact: Exact, *operands: Tensor) -> int:
    """Wrong values of ``run`` on whole tensors, on a single element, and where an odd tail is left over by SIMD; on the
    default device of the moment."""
    count = min(len(x) for x in operands)
    operands = tuple(x[:count] for x in operands)
    want = [exact(*map(Fraction, values)) for values in zip(*(x.tolist() for x in operands), strict=True)]
    operands = tuple(x.to(torch.get_default_device()) for x in operands)
    found = _wrong(run(*operands), want)
    for start, stop in ((0, 1), (5, 12), (100, 131)):
        found += _wrong(run(*(x[start:stop].clone() for x in operands)), want[start:stop])
    strided = tuple(torch.stack((x, x), 1)[:, 0] for x in operands)
    return found + _wrong(run(*strided), want)


def _cast(dtype: torch.dtype) -> tuple[Callable[[Tensor], Tensor], Exact]:
    return (lambda x: x.to(dtype)), (lambda x: nearest(x, dtype))


def _arithmetic(dtype: torch.dtype, a: Tensor, b: Tensor) -> dict[str, Callable[[], int]]:
    name = str(dtype).removeprefix("torch.")
    nonzero = torch.where(b == 0, torch.ones_like(b), b)
    f = lambda rule: lambda x, y: nearest(rule(x, y), dtype)  # noqa: E731
    return {
        f"add {name}": lambda: _check(torch.add, f(lambda x, y: x + y), a, b),
        f"sub {name}": lambda: _check(torch.sub, f(lambda x, y: x - y), a, b),
        f"mul {name}": lambda: _check(torch.mul, f(lambda x, y: x * y), a, b),
        f"div {name}": lambda: _check(torch.div, f(lambda x, y: x / y), a, nonzero),
        f"reciprocal {name}": lambda: _check(torch.reciprocal, lambda x: nearest(1 / x, dtype), nonzero),
        f"1 / {name}": lambda: _check(lambda x: 1.0 / x, lambda x: nearest(1 / x, dtype), nonzero),
        f"{name} * number": lambda: _check(lambda x: x * 0.1, lambda x: nearest(x * _number(dtype), dtype), a),
    }


def _number(dtype: torch.dtype) -> Fraction:
    """What a Python 0.1 is to an operation of this type."""
    return Fraction(nearest(Fraction(0.1), dtype))


def _row_sum(tensor: Tensor) -> Tensor:
    return emulated._tree(tensor[:, None].expand(-1, 4).contiguous(), adjacent=False).squeeze(1)


def _check_round_to(dtype: torch.dtype, values: Tensor) -> int:
    return _check(lambda x: emulated_rounding.round_to(x, dtype), lambda x: nearest(x, dtype), values)


def primitives() -> dict[str, Callable[[], int]]:
    """Name -> number of wrong values on this machine. Looked up when called, so that a test can plant a wrong one."""
    found = {**_arithmetic(torch.float32, _F, _G), **_arithmetic(torch.float64, _D, _E)}
    for source, name in ((_F, "float32"), (_D, "float64")):
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            if source.dtype == dtype or (source is _D and dtype != torch.float32):
                # float64 to a 16-bit type rounds twice in some versions; nothing here uses it.
                continue
            values = torch.cat([ties(source.dtype, dtype), source])
            run, exact = _cast(dtype)
            found[f"cast {name} to {dtype}"] = functools.partial(_check, run, exact, values)
    for source in (_B, _H, _F):
        run, exact = _cast(torch.float64)
        found[f"cast {source.dtype} to float64"] = functools.partial(_check, run, exact, source)
    for dtype in (torch.bfloat16, torch.float16):
        values = torch.cat([ties(torch.float32, dtype), _F])
        found[f"round_to {dtype}"] = functools.partial(_check_round_to, dtype, values)
    found["square_root"] = lambda: _check(
        lambda x: emulated_rounding.square_root(x), lambda x: root(x, torch.float32, 1), _POSITIVE
    )
    found["reciprocal_root"] = lambda: _check(
        lambda x: emulated_rounding.reciprocal_root(x), lambda x: root(x, torch.float32, -1), _POSITIVE[_POSITIVE > 0]
    )
    found["exponent_of"] = lambda: _check(
        lambda x: formats.exponent_of(x), lambda x: float(math.frexp(float(x))[1] - 1), _F[_F != 0].double()
    )
    found["pow2"] = lambda: _check(
        lambda x: formats.pow2(x.long()), lambda x: math.ldexp(1.0, int(x)), torch.arange(-1022.0, 1024.0).double()
    )
    found["the tree that adds a row"] = lambda: _check(
        lambda x: _row_sum(x), lambda x: nearest(4 * x, torch.float32), _F
    )
    found["exact group of a matrix product"] = _matrix_product
    return found


def _matrix_product() -> int:
    """Integers as FP8 values are in units of 2**-9: float64 holds every partial sum, so any order gives the sum."""
    draw = np.random.default_rng(9)
    a, b = draw.integers(-448, 449, (9, 4096)), draw.integers(-448, 449, (7, 4096))
    left, right = (torch.from_numpy(x).double().to(torch.get_default_device()) for x in (a, b))
    return int(((left @ right.t()).cpu() != torch.from_numpy(a @ b.T).double()).sum())


PRIMITIVES = list(primitives())


@pytest.mark.parametrize("name", PRIMITIVES)
def test_primitive_is_rounded_right_on_this_machine(name: str) -> None:
    wrong = primitives()[name]()
    assert wrong == 0, f"{name} is not correctly rounded on this machine: {wrong:,} values are wrong"


@pytest.mark.gpu
def test_primitives_are_rounded_right_on_this_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no GPU, whose operations this holds against exact values")
    with torch.device("cuda"):
        wrong = {name: count() for name, count in primitives().items()}
    assert {name: count for name, count in wrong.items() if count} == {}


# ---- the test can fail


def _mostly(right: Callable[..., Tensor], wrong: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def planted(*operands: Any, **kwargs: Any) -> Tensor:
        return wrong(right(*operands, **kwargs))

    return planted


def _last_bit(value: Tensor) -> Tensor:
    """One value in 64 is one ulp off, as MKL's square root is."""
    off = value.clone()
    bits = off.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[value.dtype.itemsize])
    bits[::64] += 1
    return off


@pytest.mark.parametrize(
    ("owner", "attribute", "name"),
    [
        (torch, "div", "div float32"),
        (torch, "reciprocal", "reciprocal float64"),
        (torch, "add", "add float64"),
        (emulated_rounding, "square_root", "square_root"),
        (emulated_rounding, "reciprocal_root", "reciprocal_root"),
        (emulated_rounding, "round_to", "round_to torch.bfloat16"),
        (formats, "pow2", "pow2"),
    ],
)
def test_a_wrong_primitive_is_named(owner: Any, attribute: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, attribute, _mostly(getattr(owner, attribute), _last_bit))
    with pytest.raises(AssertionError, match=f"{name} is not correctly rounded on this machine"):
        test_primitive_is_rounded_right_on_this_machine(name)


def test_roots_do_not_depend_on_the_library_that_estimates_them(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Tensor.sqrt
    noise = torch.Generator().manual_seed(11)

    def rough(value: Tensor) -> Tensor:
        return right(value) * (1 + (torch.rand(value.shape, generator=noise, dtype=torch.float64) - 0.5) * 2.0**-26)

    monkeypatch.setattr(Tensor, "sqrt", rough)
    for name in ("square_root", "reciprocal_root"):
        test_primitive_is_rounded_right_on_this_machine(name)


def test_square_root_passes_on_what_has_none() -> None:
    special = torch.tensor([0.0, -0.0, math.inf, math.nan, -1.0])
    found = emulated_rounding.square_root(special)
    assert found[:3].tolist() == [0.0, 0.0, math.inf]
    assert torch.signbit(found[:2]).tolist() == [False, True]
    assert bool(found[3:].isnan().all())
    assert emulated_rounding.reciprocal_root(special[2:3]).item() == 0.0


@pytest.mark.parametrize("direction", ["up", "down", "ulp_up", "ulp_down"])
def test_directed_reciprocal_roots_are_neighbours_of_the_exact_value(direction: str) -> None:
    value = _POSITIVE[_POSITIVE >= emulated_rounding.MIN_NORMAL][:1500]
    middle = emulated_rounding.reciprocal_root(value)
    found = emulated_rounding.reciprocal_root(value, direction)
    for v, near, got in zip(value.tolist(), middle.tolist(), found.tolist(), strict=True):
        above = Fraction(near) ** 2 * Fraction(v) - 1
        step = float(np.nextafter(np.float32(near), np.float32(math.inf if direction.endswith("up") else 0.0)))
        moves = above != 0 if direction.startswith("ulp") else above < 0 if direction == "up" else above > 0
        assert got == (step if moves else near), (v, near)

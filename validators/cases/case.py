"""A case and its id. The id is computed from the fields and parses back to them."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Literal, cast

from validators.errors import UserError
from validators.words import DTYPES, FP8_FORMATS, OPS

Layout = Literal["contiguous", "strided", "3d", "3dstrided"]


class CaseError(UserError):
    """A case id or a case field that does not name a case; its message is one sentence."""


@dataclass(frozen=True)
class Case:
    """One thing to compute.

    m, n, k: rows (0 too: an engine's idle rank has none), columns, inner dimension (k only for ``ptpc_gemm``;
    x is [m, n] otherwise).
    dtype: storage type T of x / residual / GEMM output. fp8: format of the codes (or of a and b).
    recipe: name of the input family (``validators.cases.recipes``), which fixes the lane. seed: >= 0.
    residual: False is the first layer's form. gamma: weight dtype, "T" or "fp32". gemma: 1 + weight.
    eps: as a string, so that the id is exact. layout: of x (and residual; see ``inputs.build``). bias: GEMM only.
    """

    op: str
    m: int
    n: int
    recipe: str
    k: int = 0
    dtype: str = "bf16"
    fp8: str = "e4m3fn"
    seed: int = 0
    residual: bool = True
    gamma: str = "T"
    gemma: bool = False
    eps: str = "1e-5"
    layout: Layout = "contiguous"
    bias: bool = False

    def __post_init__(self) -> None:
        if self.op not in OPS:
            raise CaseError(f"unknown op {self.op!r}; known: {', '.join(OPS)}")
        if self.dtype not in DTYPES:
            raise CaseError(f"unknown dtype {self.dtype!r}; known: {', '.join(DTYPES)}")
        if self.fp8 not in FP8_FORMATS:
            raise CaseError(f"unknown FP8 format {self.fp8!r}; known: {', '.join(FP8_FORMATS)}")
        if self.m < 0 or self.n < 1 or self.k < 0:
            raise CaseError(f"impossible shape m={self.m} n={self.n} k={self.k} for op {self.op}")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.recipe):
            raise CaseError(f"recipe name {self.recipe!r} is not lower-case letters, digits and underscores")

    @property
    def id(self) -> str:
        """``add_rmsnorm_quant-m512-n5120-bf16-e4m3fn-midpoints-s3``, options between recipe and seed."""
        shape = f"m{self.m}-n{self.n}" + (f"-k{self.k}" if self.k else "")
        options = [
            *([] if self.residual else ["nores"]),
            *(["gammafp32"] if self.gamma == "fp32" else []),
            *(["gemma"] if self.gemma else []),
            *([] if self.eps == "1e-5" else [f"eps{self.eps}"]),
            *([] if self.layout == "contiguous" else [self.layout]),
            *(["bias"] if self.bias else []),
        ]
        return "-".join([self.op, shape, self.dtype, self.fp8, self.recipe, *options, f"s{self.seed}"])

    @staticmethod
    def parse(text: str) -> Case:
        """The case that has id ``text``; raises CaseError with one sentence."""
        pattern = (
            r"(?P<op>[a-z_]+)-m(?P<m>\d+)-n(?P<n>\d+)(?:-k(?P<k>\d+))?-(?P<dtype>[a-z0-9]+)-(?P<fp8>e4m3[a-z]+)"
            r"-(?P<recipe>[a-z0-9_]+)(?P<nores>-nores)?(?P<gamma>-gammafp32)?(?P<gemma>-gemma)?"
            r"(?:-eps(?P<eps>\d(?:\.\d+)?(?:e-?\d+)?))?(?:-(?P<layout>strided|3dstrided|3d))?(?P<bias>-bias)?-s(?P<seed>\d+)"
        )
        found = re.fullmatch(pattern, text)
        if not found:
            raise CaseError(
                f"{text!r} is not a case id; a case id looks like add_rmsnorm_quant-m512-n5120-bf16-e4m3fn-gaussian-s0"
            )
        g = found.groupdict()
        return Case(
            op=g["op"],
            m=int(g["m"]),
            n=int(g["n"]),
            k=int(g["k"] or 0),
            dtype=g["dtype"],
            fp8=g["fp8"],
            recipe=g["recipe"],
            seed=int(g["seed"]),
            residual=not g["nores"],
            gamma="fp32" if g["gamma"] else "T",
            gemma=bool(g["gemma"]),
            eps=g["eps"] or "1e-5",
            layout=cast(Layout, g["layout"] or "contiguous"),
            bias=bool(g["bias"]),
        )

    def asdict(self) -> dict[str, object]:
        """Fields as JSON values."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

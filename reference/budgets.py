"""Every error bound of the suite, with its derivation and its terms by name.

Notation. ``u = 2**-24`` is the rounding unit of fp32: an operation rounded to nearest has relative
error at most u; an operation good to one ulp has at most 2u. A budget is a set of named terms in units
of u, all of them first order; ``Budget.bound`` turns their sum k into the rigorous ``k*u / (1 - k*u)``
(Higham, Accuracy and Stability of Numerical Algorithms, lemma 3.1: a product of k factors
(1 + d)**(+-1), |d| <= u, differs from 1 by at most gamma_k = k*u / (1 - k*u)).
"""

from __future__ import annotations

from dataclasses import dataclass

from reference.contract import NormQuantContract
from reference.formats import FloatFormat

U = 2.0**-24
FLOAT64_SLACK = 2.0**-40
"""Relative allowance for our own float64 evaluation, added to every bound, so that it cannot cause a false alarm.
It also pays for the three library functions that the reference uses on purpose, whose bits belong to a CPU, a number
of threads or a version:
- a sum of n squares in whatever order: (n - 1) 2**-53 relative, and half of that for rms, which is all that a sum is
  used for. Rows of 2**14 - 2**5 elements stay within 2**-40 in the worst order, one after another; a
  library that adds two or more partial sums halves it again, so 16,384, the widest norm in use, has a factor of 2 left.
- ``torch.sqrt`` in float64, which is MKL's on a CPU: below 1 ulp = 2**-52 (its documented limit; measured: wrong by one
  ulp in 0.8 % of the values on its Intel path, 1.2 % on the other), where IEEE 754 says half of one.
- ``linalg.vector_norm``: the same sum and one such root; squared again, 2**-51 more.
Roots and the handful of additions, products and quotients around them are below 2**-49 together."""


@dataclass(frozen=True)
class Budget:
    """Named terms in units of u. ``bound`` is the relative error that they allow together."""

    terms: tuple[tuple[str, float], ...]

    @property
    def total_u(self) -> float:
        """Sum of the terms in units of u."""
        return sum(value for _, value in self.terms)

    @property
    def bound(self) -> float:
        """Relative bound gamma = k*u/(1 - k*u) plus the float64 slack; dimensionless."""
        k = self.total_u * U
        if k >= 0.5:
            raise ValueError(f"budget of {self.total_u:.3g} u is no bound at all")
        return k / (1.0 - k) + FLOAT64_SLACK

    def scaled(self, scale: float) -> dict[str, float]:
        """Terms as absolute amounts for a quantity of size ``scale``."""
        return {name: value * U * scale for name, value in self.terms}

    def __add__(self, other: Budget) -> Budget:
        return Budget(self.terms + other.terms)


def rms_budget(contract: NormQuantContract, n: int) -> Budget:
    """Relative error of the kernel's 1/sqrt(mean(z**2) + eps); z itself is known exactly.

    The n squares are non-negative, so each summand reaches the sum multiplied by at most d factors
    (1 + delta) for the additions (d = depth of the declared reduction) and one for the square (none
    with FMA): the sum is S2*(1 + theta), |theta| <= gamma_(d+1). The division by n and ``+ eps`` cost
    ``mean_u`` (their sum is non-negative too, so errors are never amplified), and eps is rounded to fp32
    (1u). The inverse square root halves relative errors, to first order and, because
    |(1+t)**-0.5 - 1| <= |t|/2 + (3/8) t**2/(1-t)**2.5, with a second-order part that the conversion
    k*u -> k*u/(1-k*u) covers. ``rsqrt_u`` is the operation's own maximal error.
    Derivation: docs/derivations.md 3.
    """
    return Budget(
        (
            ("reduction", (contract.reduction.depth(n) + 1) / 2),
            ("mean and eps", (contract.mean_u + 1) / 2),
            ("rsqrt", contract.rsqrt_u),
        )
    )


def multiply_budget(contract: NormQuantContract, *, gemma: bool) -> Budget:
    """Relative error of the two multiplications y = z*rms*w in any order: 2u; 1 + w costs one rounding more."""
    return Budget((("multiplies", 2.0),) + ((("1 + weight", 1.0),) if gemma else ()))


def scale_step_budget(contract: NormQuantContract, qmax: float) -> Budget:
    """Relative error of s against amax/Q, given the kernel's own fp32 amax.

    "divide": the division's error. "multiply": fl32(1/Q) is off by a known constant
    (0.75u for 448, 0.875u for 240: |fl32(1/Q)*Q - 1|) and the product rounds once.
    Derivation: docs/derivations.md 4; checked over all 2**23 mantissas.
    """
    if contract.scale_rule == "divide":
        return Budget((("scale", contract.scale_u),))
    import numpy as np

    constant = abs(float(np.float32(1.0) / np.float32(qmax)) * qmax - 1.0) / U
    return Budget((("reciprocal of Q", constant), ("scale", contract.scale_u)))


def division_budget(contract: NormQuantContract, storage: FloatFormat | None = None) -> Budget:
    """Relative error of the kernel's y/s given its own fp32 y and s: one division, or 1/s and a product.

    storage: T, for the quotient that is rounded to it: at most 2**-p of itself, p bits of T's significand, where it is
    normal in T. A quotient that is subnormal in T stays below T's smallest normal number, 2**-14 for fp16, and any
    quotient below 2**-11 has code 0. Without storage the rounding to T is left out.
    """
    t = (("quotient in T", 2.0**-storage.significand / U),) if storage is not None and contract.round_quotient else ()
    if contract.division == "divide":
        return Budget((("division", contract.reciprocal_u), *t))
    return Budget((("reciprocal of s", contract.reciprocal_u), ("product", 1.0), *t))


def code_budget(contract: NormQuantContract, qmax: float, *, gemma: bool) -> Budget:
    """Cancellation theorem: relative error of the kernel's t = y/s against z*w*Q/max|z*w|.

    Without rounding to T between the norm and the quantizer the kernel's reciprocal rms is one fp32
    number that multiplies every y of the row and also the amax, so it cancels. Left are the two
    multiplications of y_i, the two of the element that gives amax (max is exact), the scale step, and
    the division: below 9u for a correctly rounded or 1 ulp reciprocal, whatever n, eps and the order of
    the reduction. Not valid where a floor replaces amax. Derivation: docs/derivations.md 5; 96 variants x
    256 rows x two widths x both formats ran without a violation.
    """
    y = multiply_budget(contract, gemma=gemma)
    amax = Budget(tuple((f"{name} of the row maximum", value) for name, value in y.terms))
    return y + amax + scale_step_budget(contract, qmax) + division_budget(contract)


def fp32_sum_budget(k: int) -> float:
    """|computed - exact| <= fp32_sum_budget(K) * sum|a*b| for an fp32 sum of K exact products, any order.

    FP8 products are exact in fp32 (8-bit significands), so only the K - 1 additions round:
    (K - 1) u sum|a*b| without higher-order terms, for every order and every tree
    (Jeannerod & Rump 2013, Improved error bounds for inner products in floating-point arithmetic,
    SIAM J. Matrix Anal. Appl. 34(2); docs/derivations.md 7). FMA chains round no more often.
    """
    return max(k - 1, 0) * U


def dequantized_sum_budget(k: int) -> float:
    """As ``fp32_sum_budget`` where the operands are scaled first: fl32(a*sa), fl32(b*sb), products of 24-bit numbers.

    Each term carries three more roundings (two operands, one product; none with FMA), relative to its own size, so
    relative to sum|a*b|*sa*sb the bound is gamma_(K+2).
    """
    total = (max(k - 1, 0) + 3) * U
    return total / (1 - total)


UNKNOWN_GROUPS = (1, 2, 4, 8, 16, 32, 64, 128)
UNKNOWN_FRACTION_BITS = 23
UNKNOWN_SPLITS = 64
UNKNOWN_ASSUMPTION = (
    "assumes that the matrix unit forms products exactly. One fused add of g inputs (1 <= g <= 128) keeps at "
    "least 23 fraction bits of the largest exponent and rounds to within 2u. At most 64 split-K partials are added "
    "in fp32."
)


def unknown_unit_budget(k: int) -> tuple[float, float]:
    """Coefficients (alpha, beta): |computed - exact| <= alpha * S + beta * E, for an unpublished matrix unit.

    S = sum|a*b|; E = 2**(max e_a + max e_b) bounds the largest product exponent. A chain of
    T = ceil(K/g) + splits - 1 fused adds; each rounds its result by at most 2u of it (the result never
    exceeds S plus earlier error) and aligns its g products and the accumulator to 23 fraction bits of the
    largest exponent, each losing less than one unit: (g + 2) * 2**-23 * max(E, |accumulator|). Taking
    the larger of the two as their sum, err <= T * (2u S' + (g + 2) 2**-23 (E + S')), maximised over g,
    with S' = S + err. Solved for err, both coefficients are divided by 1 - alpha
    (docs/derivations.md 8, under the assumption that it states). One cannot bound an
    undocumented unit without some assumption: a unit that violates this one (Hopper keeps 13 bits)
    fails loudly, which is information.
    """
    alpha = beta = 0.0
    for g in UNKNOWN_GROUPS:
        steps = -(-k // g) + UNKNOWN_SPLITS - 1
        align = (g + 2) * 2.0**-UNKNOWN_FRACTION_BITS
        # An accumulator that dominates the alignment drops products, never more than it gains in bits:
        # its own part of the alignment loss is one unit, covered with the result's rounding by 2u + 2**-23.
        alpha = max(alpha, steps * (2 * U + 2.0**-UNKNOWN_FRACTION_BITS + align))
        beta = max(beta, steps * align)
    if alpha >= 0.5:
        raise ValueError(f"no bound for an unknown matrix unit at K = {k}: its error may reach the sum itself")
    return alpha / (1 - alpha), beta / (1 - alpha)

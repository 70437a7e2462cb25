"""What the documents of the instruction set leave open: named policies, under each of which a run can be repeated."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Policy:
    """One reading of what is open.

    ulp: added to the correctly rounded result of v_rcp, v_rsq, v_sqrt, v_exp and v_log (they are documented to 1 ulp).
    flush_special: whether those flush denormals in and out, whatever MODE says (the documents say so).
    mfma: how matrix units accumulate, "cdna3" or "once" (``matrix``); "" is the target's own as far as it is known.
    fp8_inf: code of an infinite operand where MODE.FP16_OVFL is 1: "max" or "nan". item: what is open, in the words by
    which a run says that it touched it; a run that did not touch it needs no other reading.
    """

    name: str
    item: str = ""
    ulp: int = 0
    flush_special: bool = True
    fp8_inf: str = "max"
    mfma: str = ""


NEAREST = Policy("nearest")
POLICIES = {
    policy.name: policy
    for policy in (
        NEAREST,
        Policy("ulp-up", "ulp", ulp=1),
        Policy("ulp-down", "ulp", ulp=-1),
        Policy("special-denormals-kept", "special-denormals", flush_special=False),
        Policy("fp8-inf-is-nan", "fp8-inf", fp8_inf="nan"),
        Policy("mfma-as-gfx942", "mfma", mfma="cdna3"),
    )
}


def readings(touched: set[str]) -> tuple[Policy, ...]:
    """The other policies under which a run that touched these items has to be judged too."""
    return tuple(policy for policy in POLICIES.values() if policy.item in touched)

"""Counter-based random bits: the same on every device, platform and torch version.

Element ``i`` of tensor ``name`` of case ``id`` is a hash of ``(id, name, i)`` alone, so that a tensor may
be made in row chunks, on a GPU, or one row at a time, and no global random state is read or moved.
Only wrapping 64-bit integer arithmetic and exact integer-to-float conversions are used: ``log``, ``cos`` and
``erf`` differ in their last bits between platforms.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch

from validators.cases.case import Case

# Multipliers and shifts of splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number
# generators", OOPSLA 2014).
_STEP = 0x9E3779B97F4A7C15
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST_SHIFT = 31

CHUNK = 1 << 18
"""Elements hashed at a time: their int64 words (2 MiB) stay in a core's cache between operations."""

_FIELDS = 0x0000FFFF0000FFFF
# Four 16-bit fields have mean 2*65535 and variance (2^32 - 1)/3; 111/2^22 brings the standard deviation to
# 1.0013. The centred sum has 17 bits and 111 has 7, so the product is exact in fp32.
_CENTRE = 2 * 0xFFFF
_SCALE = 111.0 / (1 << 22)
GAUSSIAN_MAX = _CENTRE * _SCALE
"""Largest magnitude that the gaussian-like variable takes: 3.4687."""


def _signed(word: int) -> int:
    """A 64-bit word as the int64 with the same bits."""
    return word - (1 << 64) if word >> 63 else word


def stream_key(case_id: str, tensor: str) -> int:
    """64-bit key, as a signed integer, of the stream for ``tensor`` of the case with id ``case_id``."""
    text = f"{case_id}\0{tensor}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


def mix_(index: torch.Tensor, key: int) -> torch.Tensor:
    """64 hashed bits for each int64 index, written over ``index`` (any shape) and returned."""
    z = index.mul_(_signed(_STEP)).add_(key)
    scratch = torch.empty_like(z)
    for shift, multiplier in _ROUNDS:
        _xor_shift_(z, scratch, shift)
        z.mul_(_signed(multiplier))
    _xor_shift_(z, scratch, _LAST_SHIFT)
    return z


def _xor_shift_(z: torch.Tensor, scratch: torch.Tensor, shift: int) -> None:
    # torch shifts int64 arithmetically; the mask clears the copies of the sign.
    torch.bitwise_right_shift(z, shift, out=scratch)
    z.bitwise_xor_(scratch.bitwise_and_((1 << (64 - shift)) - 1))


def bits(key: int, start: int, count: int, device: str | torch.device = "cpu") -> torch.Tensor:
    """Words ``start .. start+count-1`` of a stream: int64 [count], all 64 bits uniform."""
    return mix_(torch.arange(start + 1, start + count + 1, dtype=torch.int64, device=device), key)


def to_uniform(words: torch.Tensor) -> torch.Tensor:
    """fp32 in [0, 1) on the grid 2^-24, from the top 24 bits of each word. Overwrites ``words``."""
    return words.bitwise_right_shift_(40).bitwise_and_(0xFFFFFF).to(torch.float32).mul_(2.0**-24)


def to_signs(words: torch.Tensor) -> torch.Tensor:
    """fp32 +1 or -1, from the top bit of each word. Overwrites ``words``."""
    return words.bitwise_right_shift_(63).bitwise_or_(1).to(torch.float32)


def to_integers(words: torch.Tensor, bound: int) -> torch.Tensor:
    """int64 in [0, bound), from the low 32 bits of each word; bound <= 2^31. Overwrites ``words``."""
    if not 1 <= bound <= 1 << 31:
        raise ValueError(f"bound {bound} is not in 1..2^31")
    return words.bitwise_and_(0xFFFFFFFF).mul_(bound).bitwise_right_shift_(32)


def to_gaussian(words: torch.Tensor) -> torch.Tensor:
    """Gaussian-like fp32: the centred sum of a word's four 16-bit fields (Irwin-Hall), variance 1.0026.

    Symmetric, bell-shaped, never beyond 3.4687, on a grid of 111 * 2^-22. Overwrites ``words``.
    """
    pair = words.bitwise_and(_FIELDS)
    pair.add_(words.bitwise_right_shift_(16).bitwise_and_(_FIELDS))
    low = torch.bitwise_and(pair, 0xFFFFFFFF, out=words)
    low.add_(pair.bitwise_right_shift_(32))
    return low.to(torch.float32).sub_(_CENTRE).mul_(_SCALE)


@dataclass(frozen=True)
class Block:
    """Rows ``start .. stop-1`` of the [*, width] tensors of a case: where a recipe draws from.

    Each method takes the stream's name; equal names give equal values in every block that holds the
    element. ``gaussian``, ``uniform``, ``signs`` and ``integers`` are [stop-start, width]; the ``row_`` forms
    depend on the row alone, [stop-start, 1], and the ``col_`` forms on the column alone, [1, width].
    """

    case: Case
    start: int
    stop: int
    width: int
    device: str = "cpu"
    _keys: dict[str, int] = field(default_factory=dict, repr=False, compare=False)

    def part(self, start: int, stop: int) -> Block:
        """The block of other rows of the same tensors."""
        return Block(self.case, start, stop, self.width, self.device, self._keys)

    def _key(self, name: str) -> int:
        if name not in self._keys:
            self._keys[name] = stream_key(self.case.id, name)
        return self._keys[name]

    @property
    def rows(self) -> torch.Tensor:
        """Row numbers, int64 [stop-start, 1]."""
        return torch.arange(self.start, self.stop, dtype=torch.int64, device=self.device).unsqueeze(1)

    @property
    def cols(self) -> torch.Tensor:
        """Column numbers, int64 [1, width]."""
        return torch.arange(self.width, dtype=torch.int64, device=self.device).unsqueeze(0)

    def words(self, name: str) -> torch.Tensor:
        """64 random bits an element, int64."""
        count = (self.stop - self.start) * self.width
        return bits(self._key(name), self.start * self.width, count, self.device).view(-1, self.width)

    def gaussian(self, name: str) -> torch.Tensor:
        """See ``to_gaussian``."""
        return to_gaussian(self.words(name))

    def uniform(self, name: str) -> torch.Tensor:
        """See ``to_uniform``."""
        return to_uniform(self.words(name))

    def signs(self, name: str) -> torch.Tensor:
        """See ``to_signs``."""
        return to_signs(self.words(name))

    def integers(self, name: str, bound: int) -> torch.Tensor:
        """See ``to_integers``."""
        return to_integers(self.words(name), bound)

    def row_integers(self, name: str, bound: int) -> torch.Tensor:
        """One integer in [0, bound) per row."""
        key = self._key(f"{name}/row")
        return to_integers(bits(key, self.start, self.stop - self.start, self.device), bound).unsqueeze(1)

    def col_integers(self, name: str, bound: int) -> torch.Tensor:
        """One integer in [0, bound) a column."""
        return to_integers(bits(self._key(f"{name}/col"), 0, self.width, self.device), bound).unsqueeze(0)

    def col_gaussian(self, name: str) -> torch.Tensor:
        """One gaussian-like value per column."""
        return to_gaussian(bits(self._key(f"{name}/col"), 0, self.width, self.device)).unsqueeze(0)

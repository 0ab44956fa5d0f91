"""Counts and amplitude: the formulas between them, and the proof that counts give back every bit.

A float stack is stored as counts only if every pixel x is sqrt(k)/s with integer k, in one of three ways in
which writers evaluate that (`FORMULAS`). The proof keeps, for each k, the one float32 that stood for it: a pixel
agrees when its k leads to its own bits. At the end a formula must give all kept bits from k alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Counts = NDArray[np.unsignedinteger]

DIVIDE_F64: Final = "f32(sqrt(k)/s)"
DIVIDE_F32: Final = "f32(sqrt(k))/f32(s)"
MULTIPLY_F32: Final = "f32(sqrt(k))*f32(1/s)"
FORMULAS: Final = (DIVIDE_F64, DIVIDE_F32, MULTIPLY_F32)

MAX_COUNT: Final = 1 << 22
"""float32 amplitudes tell neighbouring counts apart below 2^22 only."""

_UNSEEN: Final = np.uint32(0xFFFFFFFF)  # the bits of a NaN, so never those of an amplitude
_NON_SQUARE_SHARE: Final = 0.01
_STRIP: Final = 1 << 17


@dataclass(frozen=True, kw_only=True, slots=True)
class AmplitudeFormula:
    """How amplitude follows from counts k: one of `FORMULAS` and the scale s (`photons_scale`)."""

    name: str
    photons_scale: float

    def describe(self) -> str:
        """The formula with its scale, for people."""
        return f"{self.name}, s = {self.photons_scale!r}"


IDENTITY: Final = AmplitudeFormula(name=DIVIDE_F64, photons_scale=1.0)


def amplitude_from_counts(counts: Counts, formula: AmplitudeFormula, out: Floats | None = None) -> Floats:
    """Amplitude of integer counts, evaluated exactly as `formula` says; any shape, float32.

    The unit is sqrt(photon)/s: the gauge of the source.
    """
    if out is None:
        out = np.empty(counts.shape, np.float32)
    if counts.dtype.itemsize <= 2:
        if formula.photons_scale == 1.0:  # f32(sqrt(f32(k))) equals f32(sqrt(f64(k))) for all k < 2^24
            return np.sqrt(counts, out=out, dtype=np.float32, casting="unsafe")
        table = _evaluate(np.arange(int(counts.max(initial=0)) + 1), formula)
        return np.take(table, counts, out=out)
    out[...] = _evaluate(counts, formula)
    return out


def _evaluate(counts: NDArray[np.integer], formula: AmplitudeFormula) -> Floats:
    root = np.sqrt(counts.astype(np.float64))
    if formula.name == DIVIDE_F64:
        return (root / formula.photons_scale).astype(np.float32)
    if formula.name == DIVIDE_F32:
        return root.astype(np.float32) / np.float32(formula.photons_scale)
    assert formula.name == MULTIPLY_F32, formula.name
    return root.astype(np.float32) * np.float32(1.0 / formula.photons_scale)


@dataclass(frozen=True, kw_only=True, slots=True)
class SqrtEvidence:
    """Whether the values of a sample of a float stack are sqrt(k)/s with integer k.

    `scale` is a first s (relative error below 1e-7) if every value fits, else None; `non_square_share` is the
    share of non-zero pixels whose k is no perfect square. `proved` needs k = 2 and 3 and at least 1 % of those:
    numbers that are themselves integers fit any such test with perfect squares alone.
    """

    scale: float | None
    non_square_share: float
    has_two_and_three: bool

    @property
    def proved(self) -> bool:
        """True where the sample shows amplitudes of counts and nothing else."""
        return self.scale is not None and self.has_two_and_three and self.non_square_share >= _NON_SQUARE_SHARE

    @property
    def only_squares(self) -> bool:
        """True where every k is a perfect square: counts held as float look like this."""
        return self.scale is not None and self.non_square_share == 0.0

    def describe(self) -> str:
        """One line for people."""
        if self.scale is None:
            return "not sqrt(k)/s with whole k"
        twos = "" if self.has_two_and_three else ", but not both of k = 2 and 3 occur"
        share = f"{100 * self.non_square_share:.0f} % of the non-zero k are no squares"
        return f"sqrt(k)/s with whole k, s = {self.scale:.8g}; {share}{twos}"


NO_EVIDENCE: Final = SqrtEvidence(scale=None, non_square_share=0.0, has_two_and_three=False)


def sqrt_evidence(sample: Floats) -> SqrtEvidence:
    """Look for s such that every value of `sample` (float32, any shape, finite and >= 0) is sqrt(k)/s.

    The smallest non-zero value is tried as k = 1 and as k = 2; a proof needs one of them.
    """
    positive = np.sort(sample[sample > 0], axis=None)
    if positive.size == 0:
        return NO_EVIDENCE
    values, first = np.unique(positive, return_index=True)
    pixels = np.diff(np.append(first, positive.size))
    for smallest in (1, 2):
        ratio = (values.astype(np.float64) / float(values[0])) ** 2 * smallest
        k = np.rint(ratio)
        sharp = k < 2.0**18  # where float32 tells whether a ratio is whole; most values must lie there to say anything
        if sharp.mean() > 0.5 and np.all(np.abs(ratio - k)[sharp] <= k[sharp] * 2.0**-21):
            scale = _refined(values[sharp], k[sharp])
            k = np.rint((values.astype(np.float64) * scale) ** 2)
            root = np.rint(np.sqrt(k))
            non_square = pixels[root * root != k].sum() / positive.size
            return SqrtEvidence(
                scale=scale, non_square_share=float(non_square), has_two_and_three=bool(np.isin([2, 3], k).all())
            )
    return NO_EVIDENCE


def _refined(values: Floats, k: Doubles) -> float:
    """The scale in the middle of what the rounding of each value leaves open; float64."""
    low, high = _scale_interval(values, k)
    return 0.5 * (low + high)


def _scale_interval(values: Floats, k: Doubles) -> tuple[float, float]:
    """Bounds of s for which f32(sqrt(k)/s) can be `values`: the intersection over all pairs."""
    exact = values.astype(np.float64)
    above = 0.5 * (exact + np.nextafter(values, np.float32(np.inf)).astype(np.float64))
    below = 0.5 * (exact + np.nextafter(values, np.float32(0)).astype(np.float64))
    root = np.sqrt(k)
    return float(np.max(root / above)), float(np.min(root / below))


class CountLattice:
    """Every count seen so far beside the bits of the one amplitude that stood for it."""

    def __init__(self, scale: float) -> None:
        self._scale = scale
        self._bits = np.full(1 << 12, _UNSEEN, np.uint32)
        self._bits[0] = 0

    def counts_of(self, amplitude: Floats) -> Counts | None:
        """Counts of a block of finite amplitudes >= 0; None where a pixel fits no count.

        Same shape; uint16 where all counts of the block fit, else uint32.
        """
        largest = (float(amplitude.max(initial=0)) * self._scale) ** 2
        if largest >= MAX_COUNT:
            return None
        self._grow(int(largest) + 2)
        counts = np.empty(amplitude.shape, np.uint16 if largest < 65535 else np.uint32)
        precise: type[np.floating] = np.float32 if largest < 2.0**19 else np.float64
        flat, values = counts.reshape(-1), np.ascontiguousarray(amplitude).reshape(-1)
        for start in range(0, flat.size, _STRIP):  # strips stay in the cache: three times faster than one sweep
            strip = slice(start, start + _STRIP)
            if not self._count_strip(values[strip], flat[strip], precise):
                return None
        return counts

    def _count_strip(self, values: Floats, counts: Counts, precise: type[np.floating]) -> bool:
        scaled = np.multiply(values, precise(self._scale), dtype=precise)
        np.multiply(scaled, scaled, out=scaled)
        np.copyto(counts, np.rint(scaled, out=scaled), casting="unsafe")
        bits = values.view(np.uint32)
        differs = np.flatnonzero(np.take(self._bits, counts, mode="clip") != bits)
        if differs.size == 0:
            return True
        k, found = counts[differs], bits[differs]
        if np.any(self._bits[k] != _UNSEEN):
            return False
        self._bits[k] = found
        return np.array_equal(self._bits[k], found)

    def formula(self) -> AmplitudeFormula | None:
        """The formula that gives the bits of every pixel seen so far from its count; None if none does."""
        k = np.flatnonzero(self._bits != _UNSEEN)[1:]
        if k.size == 0:
            return None
        values = self._bits[k].view(np.float32)
        for candidate in self._candidates(values, k):
            if np.array_equal(_evaluate(k, candidate).view(np.uint32), self._bits[k]):
                return candidate
        return None

    def _candidates(self, values: Floats, k: NDArray[np.int64]) -> list[AmplitudeFormula]:
        low, high = _scale_interval(values, k.astype(np.float64))
        middle = 0.5 * (low + high)
        near = np.float32(middle)
        single = [float(s) for s in _neighbours(near)]
        inverse = [1.0 / float(c) for c in _neighbours(np.float32(1.0 / middle))]
        double = [1.0, *(s for s in single if low <= s <= high), middle] if low <= high else []
        return [
            *(AmplitudeFormula(name=DIVIDE_F64, photons_scale=s) for s in double),
            *(AmplitudeFormula(name=DIVIDE_F32, photons_scale=s) for s in single),
            *(AmplitudeFormula(name=MULTIPLY_F32, photons_scale=s) for s in inverse),
        ]

    def _grow(self, size: int) -> None:
        if size > self._bits.size:
            grown = np.full(min(2 * size, MAX_COUNT + 2), _UNSEEN, np.uint32)
            grown[: self._bits.size] = self._bits
            self._bits = grown


def _neighbours(value: np.float32, reach: int = 4) -> Floats:
    """The float32 numbers within `reach` steps of `value`, nearest first."""
    steps = sorted(range(-reach, reach + 1), key=abs)
    return (value.view(np.int32) + np.array(steps, np.int32)).view(np.float32)

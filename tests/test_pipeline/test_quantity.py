"""Counts give back amplitudes bit for bit, or are not used."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.scan.quantity import (
    DIVIDE_F32,
    DIVIDE_F64,
    FORMULAS,
    MULTIPLY_F32,
    AmplitudeFormula,
    CountLattice,
    amplitude_from_counts,
    sqrt_evidence,
)

scales = st.floats(1e-3, 1e5, allow_nan=False)
doses = st.sampled_from([0.5, 3.0, 40.0, 3000.0])
seeds = st.integers(0, 2**32 - 1)


def poisson(mean: float, seed: int, size: int = 6000) -> np.ndarray:
    """Counts of a frame with dark and bright places, (size,) uint32."""
    rng = np.random.default_rng(seed)
    return rng.poisson(mean * rng.exponential(1.0, size)).astype(np.uint32)


def written(counts: np.ndarray, name: str, s: float) -> np.ndarray:
    """The amplitudes that a writer of each kind leaves in its file, float32."""
    root = np.sqrt(counts.astype(np.float64))
    if name == DIVIDE_F64:
        return (root / s).astype(np.float32)
    if name == DIVIDE_F32:
        return root.astype(np.float32) / np.float32(s)
    return root.astype(np.float32) * np.float32(1 / s)


@given(scale=scales, mean=doses, seed=seeds, name=st.sampled_from(FORMULAS))
def test_a_scaled_root_of_counts_is_found_out_and_given_back_bit_for_bit(
    scale: float, mean: float, seed: int, name: str
) -> None:
    counts = poisson(mean, seed)
    amplitude = written(counts, name, scale)
    evidence = sqrt_evidence(amplitude)
    assume(np.isin([1, 2, 3], counts).all())
    assert evidence.scale is not None
    lattice = CountLattice(evidence.scale)
    found = lattice.counts_of(amplitude)
    assert found is not None
    np.testing.assert_array_equal(found, counts)
    formula = lattice.formula()
    assert formula is not None
    back = amplitude_from_counts(found, formula)
    assert back.tobytes() == amplitude.tobytes()


@given(mean=doses, seed=seeds, scale=scales)
def test_blocks_never_seen_in_the_sample_are_proved_too(mean: float, seed: int, scale: float) -> None:
    counts = poisson(mean, seed)
    amplitude = written(counts, DIVIDE_F64, scale)
    evidence = sqrt_evidence(amplitude[:1500])
    assume(evidence.proved)
    assert evidence.scale is not None
    lattice = CountLattice(evidence.scale)
    found = [lattice.counts_of(block) for block in np.split(amplitude, 6)]
    assert all(block is not None for block in found)
    formula = lattice.formula()
    assert formula is not None
    assert amplitude_from_counts(np.concatenate(found), formula).tobytes() == amplitude.tobytes()


@given(mean=doses, seed=seeds)
def test_counts_held_as_float_are_never_taken_for_amplitudes(mean: float, seed: int) -> None:
    evidence = sqrt_evidence(poisson(mean, seed).astype(np.float32))
    assert not evidence.proved


def test_all_squares_are_recognised_as_such() -> None:
    assert sqrt_evidence(np.array([0, 1, 2, 3, 7], np.float32)).only_squares


@given(seed=seeds)
def test_random_floats_prove_nothing(seed: int) -> None:
    sample = np.random.default_rng(seed).random(4000, dtype=np.float32)
    assert sqrt_evidence(sample).scale is None


@given(seed=seeds, where=st.integers(0, 5999), ulps=st.sampled_from([-2, -1, 1, 2]))
def test_one_pixel_off_by_one_bit_is_noticed(seed: int, where: int, ulps: int) -> None:
    counts = poisson(40.0, seed)
    amplitude = written(counts, DIVIDE_F64, 7.25)
    assume(amplitude[where] > 0 and (counts == counts[where]).sum() > 1)
    lattice = CountLattice(7.25)
    amplitude.view(np.int32)[where] += ulps
    assert lattice.counts_of(amplitude) is None or lattice.formula() is None


def test_a_negative_zero_is_no_count() -> None:
    lattice = CountLattice(1.0)
    assert lattice.counts_of(np.array([-0.0, 1.0], np.float32)) is None


def test_amplitudes_above_two_to_the_22_are_no_counts() -> None:
    lattice = CountLattice(1.0)
    assert lattice.counts_of(np.sqrt(np.array([2.0**22 + 5], np.float32))) is None


def test_a_block_of_zeros_is_counts_but_proves_no_formula() -> None:
    lattice = CountLattice(1.0)
    assert lattice.counts_of(np.zeros((2, 3), np.float32)) is not None
    assert lattice.formula() is None
    assert sqrt_evidence(np.zeros((2, 3), np.float32)).scale is None


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_integer_sources_give_the_rounded_root_in_every_dtype(dtype: type) -> None:
    counts = np.arange(250, dtype=dtype)
    formula = AmplitudeFormula(name=DIVIDE_F64, photons_scale=1.0)
    expected = np.sqrt(counts.astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(amplitude_from_counts(counts, formula), expected)


def test_the_multiplying_formula_recovers_its_constant_from_the_scale() -> None:
    constant = np.float32(0.0012345)
    counts = np.arange(5000, dtype=np.uint16)
    formula = AmplitudeFormula(name=MULTIPLY_F32, photons_scale=1.0 / float(constant))
    expected = np.sqrt(counts.astype(np.float64)).astype(np.float32) * constant
    assert amplitude_from_counts(counts, formula).tobytes() == expected.tobytes()


def test_an_output_buffer_is_filled_and_returned() -> None:
    counts = np.arange(6, dtype=np.uint16).reshape(2, 3)
    out = np.empty((2, 3), np.float32)
    formula = AmplitudeFormula(name=DIVIDE_F64, photons_scale=2.5)
    assert amplitude_from_counts(counts, formula, out) is out
    np.testing.assert_array_equal(out, (np.sqrt(counts.astype(np.float64)) / 2.5).astype(np.float32))

"""What the simulated detector promises."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.seeding import Purpose, rng_for
from pipeline.simulate.forward import dose_scale, expected_intensity, extract_patches, poisson_counts
from pipeline.simulate.objects import make_object
from pipeline.simulate.positions import uniform_positions
from pipeline.simulate.probes import hermite_modes, zone_plate_probe

N = 16
SEEDS = st.integers(0, 2**32 - 1)


def random_object(seed, shape=(40, 56), dtype=np.complex64):
    rng = rng_for(seed, Purpose.OBJECT_AMPLITUDE)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)


@given(SEEDS, st.integers(N // 2, 40 - N // 2), st.integers(N // 2, 56 - N // 2))
def test_a_whole_pixel_position_slices_the_object(seed, y, x):
    obj = random_object(seed)
    patch = extract_patches(obj, np.array([[y, x]], dtype=np.float64), N)[0]
    assert np.array_equal(patch, obj[y - N // 2 : y + N // 2, x - N // 2 : x + N // 2])


@given(st.floats(N / 2, 40 - N / 2 - 1e-6), st.floats(N / 2, 56 - N / 2 - 1e-6))
def test_a_ramp_is_read_exactly_at_any_position(y, x):
    rows, columns = np.mgrid[:40, :56].astype(np.float64)
    patch = extract_patches(rows + 1j * columns, np.array([[y, x]]), N)[0]
    seen = np.arange(N) - N // 2
    inside = slice(0, N - 1)  # the last row and column may lean on pixels outside
    np.testing.assert_allclose(patch.real[inside, inside], np.tile(y + seen[inside, None], N - 1), atol=1e-9)
    np.testing.assert_allclose(patch.imag[inside, inside], np.tile(x + seen[inside], (N - 1, 1)), atol=1e-9)


def test_exchanged_or_mirrored_axes_see_something_else():
    obj, position = random_object(1, (40, 40)), np.array([[12.0, 25.0]])
    right = extract_patches(obj, position, N)
    assert not np.allclose(right, extract_patches(obj, position[:, ::-1], N))
    assert not np.allclose(right, extract_patches(obj, 40 - position, N))
    assert np.array_equal(right[0].T, extract_patches(obj.T, position[:, ::-1], N)[0])


@given(SEEDS, st.floats(-60, 100), st.floats(-60, 100))
def test_the_object_is_zero_outside(seed, y, x):
    obj = random_object(seed, (40, 40), np.complex128)
    padded = np.pad(obj, 100)
    patch, from_padded = (extract_patches(a, np.array([[y, x]]) + s, N) for a, s in ((obj, 0), (padded, 100)))
    np.testing.assert_allclose(patch, from_padded, atol=1e-10)


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_patches_keep_the_precision_of_the_object(dtype):
    assert extract_patches(random_object(1, dtype=dtype), np.array([[20.5, 20.25]]), N).dtype == dtype


@given(SEEDS, st.integers(1, 3))
def test_a_frame_holds_the_energy_of_its_exit_wave(seed, n_modes):
    obj = random_object(seed)
    probe = random_object(seed + 1, (n_modes, N, N))
    patches = extract_patches(obj, uniform_positions(5, 40, N, seed), N)
    intensity = expected_intensity(patches, probe)
    assert intensity.dtype == np.float64
    energy = (np.abs(patches[:, None].astype(np.complex128) * probe[None]) ** 2).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(intensity.sum(axis=(1, 2)), energy, rtol=1e-5)


def test_modes_add_their_intensities_not_their_waves():
    patches = random_object(2, (3, N, N))
    probe = hermite_modes(zone_plate_probe(N), 3, [0.6, 0.3, 0.1])
    apart = sum(expected_intensity(patches, probe[m : m + 1]) for m in range(3))
    np.testing.assert_allclose(expected_intensity(patches, probe), apart, rtol=1e-12)
    assert not np.allclose(apart, expected_intensity(patches, probe.sum(axis=0, keepdims=True)))


@given(st.integers(-N // 2, N // 2 - 1), st.integers(-N // 2, N // 2 - 1))
def test_a_plane_wave_lands_at_its_frequency_from_the_centre(ky, kx):
    rows, columns = np.mgrid[:N, :N]
    wave = np.exp(2j * np.pi * (ky * rows + kx * columns) / N)[None]
    intensity = expected_intensity(wave, np.ones((1, N, N), dtype=np.complex128))[0]
    assert np.unravel_index(intensity.argmax(), intensity.shape) == (N // 2 + ky, N // 2 + kx)


@given(st.floats(1e-6, 1e9), st.floats(1, 1e9))
def test_the_dose_scale_brings_the_mean_to_the_photons_asked_for(mean_total, photons):
    assert dose_scale(mean_total, photons) ** 2 * mean_total == pytest.approx(photons)


@pytest.mark.parametrize(("mean_total", "photons"), [(0.0, 1e5), (1.0, 0.0), (np.nan, 1e5), (1.0, np.inf), (1.0, -1.0)])
def test_a_dose_that_no_light_gives_is_refused(mean_total, photons):
    with pytest.raises(ConfigError, match="both must be positive"):
        dose_scale(mean_total, photons)


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.integers(0, 1000), st.sets(st.integers(1, 11)))
def test_counts_do_not_depend_on_how_frames_are_blocked(seed, first_frame, cuts):
    expected = rng_for(seed, Purpose.PROBE).uniform(0, 50, (12, 8, 8))
    whole = poisson_counts(expected, first_frame, seed)
    edges = [0, *sorted(cuts), 12]
    blocks = [poisson_counts(expected[a:b], first_frame + a, seed) for a, b in pairwise(edges)]
    assert np.concatenate(blocks).tobytes() == whole.tobytes()


def test_the_same_seed_draws_the_same_photons_and_another_seed_others():
    expected = np.full((4, 8, 8), 20.0)
    assert poisson_counts(expected, 0, 1).tobytes() == poisson_counts(expected, 0, 1).tobytes()
    assert not np.array_equal(poisson_counts(expected, 0, 1), poisson_counts(expected, 0, 2))
    assert not np.array_equal(poisson_counts(expected, 0, 1)[0], poisson_counts(expected, 0, 1)[1])


def test_counts_scatter_around_the_expected_intensity_as_photons_do():
    counts = poisson_counts(np.full((50, 32, 32), 9.0), 0, seed=3).astype(np.float64)
    assert counts.mean() == pytest.approx(9, abs=0.1)
    assert counts.var() == pytest.approx(9, rel=0.03)


@pytest.mark.parametrize(("photons", "dtype"), [(0.0, np.uint16), (60_000.0, np.uint16), (1e6, np.uint32)])
def test_counts_are_as_wide_as_they_must_be(photons, dtype):
    counts = poisson_counts(np.full((2, 4, 4), photons), 0, seed=1)
    assert counts.dtype == dtype
    np.testing.assert_allclose(counts, photons, atol=6 * np.sqrt(photons))


def test_more_photons_than_32_bits_hold_are_refused():
    with pytest.raises(ConfigError, match="frame 7 holds a pixel of"):
        poisson_counts(np.full((1, 2, 2), 1e10), 7, seed=1)


def test_a_scan_of_the_built_in_probe_looks_like_a_measured_one():
    # a public simulated set of the same kind: 6.5 % empty pixels, at most 154 photons, contrast 0.38
    obj, positions = make_object("lines", "of-amplitude", 256, 1), uniform_positions(100, 256, 64, 1)
    expected = expected_intensity(extract_patches(obj, positions, 64), zone_plate_probe(64))
    scale = dose_scale(float(expected.sum(axis=(1, 2)).mean()), 1e5)
    counts = poisson_counts(expected * scale**2, 0, seed=1)
    assert counts.sum(axis=(1, 2)).mean() == pytest.approx(1e5, rel=1e-3)
    assert 0.03 < (counts == 0).mean() < 0.1
    assert 100 < counts.max() < 250
    contrast = np.sqrt(((counts - counts.mean(axis=0)) ** 2).mean()) / counts.mean()
    assert 0.3 < contrast < 0.5

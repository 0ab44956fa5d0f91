"""What simulated samples, probes and positions promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.seeding import Purpose, rng_for
from pipeline.simulate.objects import AMPLITUDES, PHASES, dead_leaves, make_object, siemens_star
from pipeline.simulate.positions import raster_positions, spiral_positions, uniform_positions
from pipeline.simulate.probes import disk_probe, hermite_modes, zone_plate_probe

SIDE = 48
SEEDS = st.integers(0, 2**63 - 1)
KINDS = [(amplitude, phase) for amplitude in AMPLITUDES for phase in PHASES]


def correlation(a, b):
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]


@pytest.mark.parametrize(("amplitude", "phase"), KINDS)
def test_amplitude_and_phase_fill_their_ranges_and_leave_them_nowhere(amplitude, phase):
    made = make_object(amplitude, phase, SIDE, seed=3)
    assert made.shape == (SIDE, SIDE)
    assert made.dtype == np.complex64
    measured = np.abs(made).min(), np.abs(made).max()
    assert measured == pytest.approx(AMPLITUDES[amplitude][1], abs=1e-5)
    if (amplitude, phase) != ("flat", "of-amplitude"):
        measured = np.angle(made).min(), np.angle(made).max()
        assert measured == pytest.approx(PHASES[phase][1], abs=1e-5)


@settings(deadline=None, max_examples=20)
@given(SEEDS, st.sampled_from(KINDS))
def test_the_same_seed_gives_the_same_bytes(seed, kind):
    assert make_object(*kind, 32, seed).tobytes() == make_object(*kind, 32, seed).tobytes()


@pytest.mark.parametrize("kind", ["lines", "dead-leaves", "grf"])
def test_another_seed_gives_another_amplitude_and_another_phase(kind):
    one, other = make_object(kind, kind, SIDE, seed=1), make_object(kind, kind, SIDE, seed=2)
    assert not np.allclose(np.abs(one), np.abs(other))
    assert not np.allclose(np.angle(one), np.angle(other))


@settings(deadline=None, max_examples=10)
@given(SEEDS)
def test_the_amplitude_does_not_depend_on_what_the_phase_is(seed):
    amplitudes = [np.abs(make_object("lines", phase, 32, seed)) for phase in PHASES]
    for other in amplitudes[1:]:
        np.testing.assert_allclose(other, amplitudes[0], atol=1e-6)


def test_the_phase_follows_the_amplitude_only_where_that_is_asked_for():
    follows, apart = (make_object("lines", phase, 128, seed=5) for phase in ("of-amplitude", "lines"))
    assert correlation(np.abs(follows), np.angle(follows)) == pytest.approx(1, abs=1e-5)
    assert abs(correlation(np.abs(apart), np.angle(apart))) < 0.6


def test_an_unknown_texture_is_refused_with_the_known_names():
    with pytest.raises(ConfigError, match="no amplitude is called 'wood'; known: lines, dead-leaves"):
        make_object("wood", "lines", SIDE, seed=1)
    with pytest.raises(ConfigError, match="no phase is called 'star'"):
        make_object("lines", "star", SIDE, seed=1)


@settings(deadline=None, max_examples=20)
@given(SEEDS, st.floats(0.02, 0.1), st.integers(8, 64))
def test_dead_leaves_cover_every_pixel_with_a_grey_of_zero_to_one(seed, smallest, side):
    texture = dead_leaves(side, rng_for(seed, Purpose.OBJECT_AMPLITUDE), radius_range=(smallest, 0.2))
    assert np.isfinite(texture).all()
    assert (texture.min(), texture.max()) == (0, 1)


def test_dead_leaves_are_flat_inside_and_many():
    texture = dead_leaves(128, rng_for(4, Purpose.OBJECT_AMPLITUDE))
    assert (np.diff(texture, axis=0) == 0).mean() > 0.7
    assert 100 < np.unique(texture).size < 1500


def test_larger_leaves_are_fewer():
    few, many = (
        dead_leaves(64, rng_for(4, Purpose.OBJECT_AMPLITUDE), radius_range=r) for r in ((0.2, 0.4), (0.02, 0.1))
    )
    assert 5 * np.unique(few).size < np.unique(many).size


def test_a_star_repeats_after_a_turn_by_one_spoke_pair():
    star = siemens_star(129, n_spokes=32)  # odd: its centre is a pixel, so quarter turns are exact
    np.testing.assert_allclose(star, np.rot90(star), atol=1e-9)
    assert 0.2 < star.mean() < 0.4


@pytest.mark.parametrize("probe", [disk_probe, zone_plate_probe])
@pytest.mark.parametrize("n", [32, 33, 64, 128])
def test_a_probe_has_energy_one_around_the_centre_pixel(probe, n):
    energy = np.abs(probe(n)) ** 2
    assert energy.shape == (1, n, n)
    assert energy.sum() == pytest.approx(1, abs=1e-5)
    pixels = np.arange(n)
    centroid = (energy[0].sum(1) @ pixels, energy[0].sum(0) @ pixels)
    assert centroid == pytest.approx((n // 2, n // 2), abs=0.02)


@settings(deadline=None, max_examples=20)
@given(st.sampled_from([32, 64, 128]), st.floats(0, 12))
def test_the_disc_holds_its_energy_inside_its_rim_whatever_its_curvature(n, curvature_rad):
    probe = disk_probe(n, curvature_rad=curvature_rad)[0]
    pixels = np.arange(n) - n // 2
    inside = np.hypot(pixels[:, None], pixels[None, :]) < 0.17 * n + 2
    assert (np.abs(probe[inside]) ** 2).sum() > 0.995
    np.testing.assert_allclose(np.abs(probe), np.abs(disk_probe(n, curvature_rad=0)[0]), atol=1e-7)


def test_a_curved_disc_reaches_further_on_the_detector_than_a_real_one():
    peaks = [np.abs(np.fft.fft2(disk_probe(64, curvature_rad=c)[0])).max() for c in (0, np.pi, 3 * np.pi)]
    assert peaks[0] > peaks[1] > peaks[2]


@pytest.mark.parametrize("n", [64, 128])
def test_the_zone_plate_is_compact_at_the_sample_with_a_dark_centre_on_the_detector(n):
    probe = zone_plate_probe(n)[0].astype(np.complex128)
    half = round(0.22 * n)
    box = slice(n // 2 - half, n // 2 + half)
    assert (np.abs(probe[box, box]) ** 2).sum() > 0.999
    detector = np.fft.fftshift(np.abs(np.fft.fft2(probe)) ** 2)
    assert detector[n // 2, n // 2] < 1e-3 * detector.mean()
    assert detector[n // 2, n // 2 + n // 4] > 0.5 * detector.mean()


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(0.05, 1), min_size=1, max_size=6))
def test_modes_are_orthogonal_with_the_energies_asked_for(weights):
    fractions = list(np.array(weights) / sum(weights))
    modes = hermite_modes(zone_plate_probe(32), len(fractions), fractions).astype(np.complex128)
    flat = modes.reshape(len(fractions), -1)
    np.testing.assert_allclose(flat.conj() @ flat.T, np.diag(fractions), atol=1e-6)


def test_the_first_mode_is_the_probe_itself():
    probe = disk_probe(32)
    modes = hermite_modes(probe, 3, [0.64, 0.2, 0.16])
    np.testing.assert_allclose(modes[0], 0.8 * probe[0], atol=1e-7)


@pytest.mark.parametrize("fractions", [[0.5, 0.4], [1.5, -0.5], [1.0]])
def test_mode_energies_that_are_no_shares_are_refused(fractions):
    with pytest.raises(ConfigError, match="expected 2 positive numbers of sum 1"):
        hermite_modes(disk_probe(32), 2, fractions)


@settings(max_examples=50)
@given(st.integers(1, 300), st.integers(4, 64), st.integers(0, 200), SEEDS)
def test_no_frame_sees_beyond_the_object(n, half, more, seed):
    probe_side, object_side = 2 * half, 2 * half + more
    for positions in (
        uniform_positions(n, object_side, probe_side, seed),
        raster_positions(n, object_side, probe_side, seed),
        spiral_positions(n, object_side, probe_side),
    ):
        assert positions.shape == (n, 2)
        assert positions.dtype == np.float64
        assert positions.min() >= half
        assert positions.max() <= object_side - half


@pytest.mark.parametrize("scan", [uniform_positions, raster_positions])
def test_positions_are_fixed_by_their_seed(scan):
    assert scan(50, 256, 64, 7).tobytes() == scan(50, 256, 64, 7).tobytes()
    assert not np.array_equal(scan(50, 256, 64, 7), scan(50, 256, 64, 8))


def test_a_raster_without_jitter_runs_row_by_row():
    raster = raster_positions(9, 128, 64, 1, jitter_px=0)
    assert raster.tolist() == [[y, x] for y in (32, 64, 96) for x in (32, 64, 96)]


def test_a_spiral_covers_its_disc_evenly():
    spiral = spiral_positions(400, 264, 64) - 132
    radius = np.hypot(*spiral.T)
    assert [(radius < r).sum() for r in (50, 100)] == pytest.approx([100, 400], abs=2)
    distance = np.hypot(*(spiral[:, None] - spiral[None]).transpose(2, 0, 1)) + 1e9 * np.eye(400)
    assert distance.min() > 0.6 * np.sqrt(np.pi * 100**2 / 400)


def test_an_object_smaller_than_the_probe_is_refused():
    with pytest.raises(ConfigError, match="an object of 60 px is smaller than the probe of 64 px"):
        uniform_positions(10, 60, 64, seed=1)


def test_nothing_touches_the_global_generator():
    before = np.random.get_state()[1].tobytes()  # noqa: NPY002
    make_object("dead-leaves", "grf", 32, seed=1)
    uniform_positions(10, 64, 32, seed=1)
    assert np.random.get_state()[1].tobytes() == before  # noqa: NPY002

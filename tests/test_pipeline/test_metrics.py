"""Metrics of objects against their gauge and slow references, noise floors against sums and draws."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import gammaln, xlogy

from pipeline.errors import SchemaError
from pipeline.evaluation.metrics import (
    compare_objects,
    complex_nrmse,
    least_squares_factor,
    scored_box,
    ssim,
)
from pipeline.physics.noise import expected_r_factor_parts, poisson_floor, r_factor_parts

SEEDS = st.integers(0, 2**32 - 1)
FACTORS = st.builds(lambda size, turn: size * np.exp(1j * turn), st.floats(1e-3, 1e3), st.floats(-4, 4))
LIGHTS = st.one_of(st.floats(0, 3), st.floats(3, 700), st.floats(-5, 6).map(lambda exponent: 10.0**exponent))
BACKGROUNDS = st.sampled_from([0.0, 0.01, 0.05, 0.1])


def smooth_object(seed: int, shape: tuple[int, int] = (19, 23)) -> np.ndarray:
    """Amplitude 0.6 to 1.1 and a phase within a radian, complex64."""
    rng = np.random.default_rng(seed)
    return (rng.uniform(0.6, 1.1, shape) * np.exp(1j * rng.uniform(-0.5, 0.5, shape))).astype(np.complex64)


def noisy(obj: np.ndarray, seed: int = 7) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (obj + 0.05 * (rng.normal(size=obj.shape) + 1j * rng.normal(size=obj.shape))).astype(np.complex64)


def photon_frames(light: np.ndarray, n_frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(light, (n_frames, *light.shape)).astype(np.float64)


def chances(light: float) -> tuple[np.ndarray, np.ndarray]:
    """Counts within 14 standard deviations and their Poisson chances."""
    reach = 14 * np.sqrt(light) + 40
    counts = np.arange(max(0, int(light - reach)), int(light + reach)).astype(np.float64)
    chance = np.exp(xlogy(counts, light) - light - gammaln(counts + 1))
    return counts[chance > 0], chance[chance > 0] / chance.sum()


def loss_of(counts: np.ndarray, modelled: float | np.ndarray) -> np.ndarray:
    return modelled - xlogy(counts, modelled) - counts + counts * np.log(np.maximum(counts, 1e-3))


def slow_ssim(image: np.ndarray, reference: np.ndarray, data_range: float) -> float:
    """Wang 2004 as it is written: one window after the other, two-pass moments."""
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    scores = []
    for y in range(5, image.shape[0] - 5):
        for x in range(5, image.shape[1] - 5):
            a, b = (values[y - 5 : y + 6, x - 5 : x + 6] for values in (image, reference))
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            covariance = (window * (a - mean_a) * (b - mean_b)).sum()
            likeness = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
            scores.append(likeness / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))
    return float(np.mean(scores))


@given(seed=SEEDS, factor=FACTORS)
def test_no_metric_of_an_object_depends_on_its_complex_factor(seed: int, factor: complex) -> None:
    truth = smooth_object(seed)
    found = noisy(truth).astype(np.complex128)
    plain, scaled = (dataclasses.asdict(compare_objects(obj, truth)) for obj in (found, factor * found))
    assert scaled == pytest.approx(plain, rel=1e-9)


@given(seed=SEEDS, factor=FACTORS)
def test_the_truth_in_any_gauge_is_perfect(seed: int, factor: complex) -> None:
    truth = smooth_object(seed)
    perfect = compare_objects(factor * truth, truth)
    assert perfect.complex_nrmse == pytest.approx(0, abs=1e-6)
    assert perfect.amplitude_mae == pytest.approx(0, abs=1e-6)
    assert perfect.phase_mae_rad == pytest.approx(0, abs=1e-6)
    assert perfect.amplitude_ssim == pytest.approx(1, abs=1e-6)
    assert perfect.phase_ssim == pytest.approx(1, abs=1e-6)


@given(seed=SEEDS, away=FACTORS)
def test_no_other_factor_brings_an_object_nearer_to_the_truth(seed: int, away: complex) -> None:
    truth = smooth_object(seed)
    found = 3j * noisy(truth)
    gamma = least_squares_factor(found, truth)

    def distance(factor: complex) -> float:
        return float(np.linalg.norm(factor * found - truth) / np.linalg.norm(truth))

    assert complex_nrmse(found, truth) == pytest.approx(distance(gamma), rel=1e-5)
    assert distance(gamma) <= distance(gamma + 1e-2 * away) + 1e-6


def test_an_object_unrelated_to_the_truth_has_an_nrmse_of_one() -> None:
    truth = np.array([[1, 1], [1, 1]], dtype=np.complex64)
    assert complex_nrmse(np.array([[1, -1], [1j, -1j]]), truth) == pytest.approx(1)
    assert complex_nrmse(np.zeros_like(truth), truth) == 1


@given(seed=SEEDS)
def test_the_flat_object_has_its_closed_form(seed: int) -> None:
    truth = smooth_object(seed).astype(np.complex128)
    closed = np.sqrt(1 - abs(truth.sum()) ** 2 / (truth.size * (np.abs(truth) ** 2).sum()))
    assert compare_objects(np.ones_like(truth), truth).complex_nrmse == pytest.approx(closed, rel=1e-9)


@given(seed=SEEDS, error_rad=st.floats(1e-3, 1.5), common_rad=st.floats(-4, 4))
def test_phase_errors_count_the_same_on_both_sides_of_a_wrap(seed: int, error_rad: float, common_rad: float) -> None:
    rng = np.random.default_rng(seed)
    truth = np.exp(1j * (common_rad + rng.uniform(-np.pi, np.pi, (12, 12))))
    signs = np.tile([1, -1], (12, 6))  # as many ahead as behind: no common factor to take out
    metrics = compare_objects(truth * np.exp(1j * signs * error_rad), truth)
    assert metrics.phase_mae_rad == pytest.approx(error_rad, rel=1e-6)


@given(seed=SEEDS, turn=st.floats(-4, 4))
def test_the_phase_of_the_truth_may_lie_anywhere(seed: int, turn: float) -> None:
    truth = smooth_object(seed).astype(np.complex128)
    found = noisy(truth).astype(np.complex128)
    plain, turned = (dataclasses.asdict(compare_objects(found, truth * factor)) for factor in (1, np.exp(1j * turn)))
    assert turned == pytest.approx(plain, rel=1e-9)


def test_errors_are_means_over_pixels() -> None:
    truth = np.array([[2, 2], [2, 4]], dtype=np.complex128)
    found = np.array([[2, 2], [2, 4 * np.exp(0.4j)]])
    gamma = least_squares_factor(found, truth)
    metrics = compare_objects(found, truth)
    turned = np.abs(np.angle(gamma * found / truth))
    assert metrics.amplitude_mae == pytest.approx((1 - abs(gamma)) * 2.5)
    assert metrics.phase_mae_rad == pytest.approx(turned.mean())
    assert (metrics.amplitude_data_range, metrics.phase_data_range_rad) == (2, 0)


@given(seed=SEEDS, data_range=st.floats(0.1, 10))
def test_ssim_is_what_its_definition_gives(seed: int, data_range: float) -> None:
    rng = np.random.default_rng(seed)
    reference = rng.uniform(0, 1, (13, 15))
    image = reference + 0.3 * rng.normal(size=reference.shape)
    fast = ssim(image, reference, data_range=data_range)
    assert fast == pytest.approx(slow_ssim(image, reference, data_range), rel=1e-9)


def test_objects_are_scored_by_the_ssim_of_their_amplitude_and_phase() -> None:
    truth = smooth_object(1).astype(np.complex128) * 3j
    found = noisy(truth).astype(np.complex128)
    matched = found * least_squares_factor(found, truth)
    upright = np.conj(truth.mean())
    metrics = compare_objects(found, truth)
    assert metrics.amplitude_data_range == pytest.approx(np.ptp(np.abs(truth)))
    assert metrics.phase_data_range_rad == pytest.approx(np.ptp(np.angle(truth / 3j)), rel=1e-6)
    amplitudes, phases = (np.abs(matched), np.abs(truth)), (np.angle(matched * upright), np.angle(truth * upright))
    assert metrics.amplitude_ssim == pytest.approx(slow_ssim(*amplitudes, metrics.amplitude_data_range))
    assert metrics.phase_ssim == pytest.approx(slow_ssim(*phases, metrics.phase_data_range_rad))


def test_ssim_needs_one_whole_window() -> None:
    truth = smooth_object(2, (11, 11))
    assert ssim(np.abs(truth).astype(np.float64), np.abs(truth).astype(np.float64), data_range=1) == pytest.approx(1)
    assert compare_objects(truth, truth).amplitude_ssim is not None
    narrow = compare_objects(truth[:, 1:], truth[:, 1:])
    assert narrow.amplitude_ssim is None
    assert narrow.phase_ssim is None


def test_ssim_of_a_constant_truth_is_unknown() -> None:
    truth = smooth_object(3)
    pure_phase, pure_amplitude = (truth / np.abs(truth)).astype(np.complex64), np.abs(truth).astype(np.complex64)
    by_phase = compare_objects(noisy(pure_phase), pure_phase)
    assert 0 < by_phase.amplitude_data_range < 1e-6  # rounding, not structure
    assert by_phase.amplitude_ssim is None
    assert by_phase.phase_ssim is not None
    by_amplitude = compare_objects(noisy(pure_amplitude), pure_amplitude * np.complex64(np.exp(0.3j)))
    assert 0 < by_amplitude.phase_data_range_rad < 1e-6
    assert by_amplitude.phase_ssim is None
    assert by_amplitude.amplitude_ssim is not None


def test_an_object_of_zeros_has_no_phase() -> None:
    truth = smooth_object(4)
    dark = compare_objects(np.zeros_like(truth), truth)
    assert dark.phase_mae_rad is None
    assert dark.phase_ssim is None
    assert dark.amplitude_mae == pytest.approx(np.abs(truth).mean())


def test_pixels_without_phase_do_not_count_in_its_mean() -> None:
    truth = np.exp(0.3j * np.tile([1, -1], (12, 6)))
    found = np.ones_like(truth)
    found[:6] = 0
    assert compare_objects(found, truth).phase_mae_rad == pytest.approx(0.3)


@pytest.mark.parametrize("metric", [complex_nrmse, compare_objects])
def test_objects_that_cannot_be_compared_are_refused(metric) -> None:
    truth = smooth_object(5)
    with pytest.raises(SchemaError, match=r"\(23, 19\).*\(19, 23\)"):
        metric(truth.T, truth)
    for nothing in (np.zeros_like(truth), np.full_like(truth, np.nan), np.full_like(truth, np.inf), truth[:0]):
        with pytest.raises(SchemaError, match="norm"):
            metric(np.ones_like(nothing), nothing)


def test_r_factors_are_sums_of_roots() -> None:
    measured, predicted = np.array([[[4.0, 9.0]], [[0.0, 1.0]]]), np.array([[[1.0, 16.0]], [[4.0, 1.0]]])
    numerator, denominator = r_factor_parts(measured, predicted)
    assert numerator.tolist() == [2, 2]
    assert denominator.tolist() == [5, 1]


@given(seed=SEEDS, cut=st.integers(0, 5))
def test_r_factor_parts_of_batches_are_those_of_the_whole(seed: int, cut: int) -> None:
    rng = np.random.default_rng(seed)
    predicted = rng.lognormal(0, 2, (5, 4, 6)).astype(np.float32)
    measured = rng.poisson(predicted).astype(np.float32)
    whole = np.array(r_factor_parts(measured, predicted))
    parts = [r_factor_parts(measured[part], predicted[part]) for part in (slice(cut), slice(cut, None))]
    assert np.concatenate(parts, axis=1) == pytest.approx(whole, rel=1e-12)
    assert whole.dtype == np.float64


def test_bad_pixels_count_in_no_part() -> None:
    predicted = np.random.default_rng(0).uniform(1, 50, (3, 4, 4))
    measured = predicted + 1
    good = np.ones((4, 4), dtype=bool)
    good[1, 2:] = False
    spoiled = [np.where(good, frames, np.nan) for frames in (measured, predicted)]
    kept = [np.where(good, frames, 0) for frames in (measured, predicted)]
    assert np.array(r_factor_parts(*spoiled, good=good)) == pytest.approx(np.array(r_factor_parts(*kept)))
    floors = expected_r_factor_parts(spoiled[1], good=good)
    assert np.array(floors) == pytest.approx(np.array(expected_r_factor_parts(kept[1])))


@given(light=LIGHTS)
def test_expected_r_factor_parts_are_sums_over_the_poisson_law(light: float) -> None:
    counts, chance = chances(light)
    numerator, denominator = expected_r_factor_parts(np.full((2, 1, 3), light))
    assert numerator == pytest.approx(
        np.full(2, 3 * (chance * np.abs(np.sqrt(counts) - np.sqrt(light))).sum()), rel=2e-4
    )
    assert denominator == pytest.approx(np.full(2, 3 * (chance * np.sqrt(counts)).sum()), rel=1e-6)


def test_the_expected_r_factor_is_that_of_drawn_frames() -> None:
    light = np.random.default_rng(1).lognormal(0, 2.5, (64, 64))
    drawn = photon_frames(light, 200)
    numerator, denominator = (part.mean() for part in r_factor_parts(drawn, np.broadcast_to(light, drawn.shape)))
    floor_numerator, floor_denominator = (float(part[0]) for part in expected_r_factor_parts(light[np.newaxis]))
    assert floor_numerator == pytest.approx(numerator, rel=3e-3)
    assert floor_denominator == pytest.approx(denominator, rel=1e-3)


@given(light=LIGHTS, background=BACKGROUNDS)
def test_the_poisson_floor_is_a_sum_over_the_poisson_law(light: float, background: float) -> None:
    counts, chance = chances(light)
    expected = (chance * loss_of(counts, light + background)).sum()
    assert poisson_floor(np.array(light), background=background) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("light", [0, 1e-4, 1e-2, 0.1, 0.5, 1, 3, 30, 511.9, 512, 1e3, 1e4, 1e5, 1e6])
@pytest.mark.parametrize("background", [0.0, 0.05])
def test_the_poisson_floor_is_the_mean_loss_of_drawn_counts(light: float, background: float) -> None:
    counts = photon_frames(np.array(light), 1_000_000)
    losses = loss_of(counts, light + background)
    four_sigma = 4 * losses.std() / 1000 + 1e-12
    assert float(poisson_floor(np.array(light), background=background)) == pytest.approx(losses.mean(), abs=four_sigma)


def test_background_that_makes_counts_is_light() -> None:
    light, background = np.array([0.0, 0.02, 1.5, 40.0]), 0.1
    counts = photon_frames(light + background, 500_000)
    losses = loss_of(counts, light + background)
    four_sigma = 4 * losses.std(axis=0) / np.sqrt(500_000)
    assert (np.abs(poisson_floor(light + background, background=0.0) - losses.mean(axis=0)) <= four_sigma).all()


def test_the_floor_is_that_of_the_loss_that_is_reported() -> None:
    torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
    from pipeline.physics.losses import REPORTED_BACKGROUND, poisson_nll

    light = np.random.default_rng(2).lognormal(0, 2, (64, 64))
    drawn = torch.from_numpy(photon_frames(light, 200))
    reported = poisson_nll(drawn, torch.from_numpy(light), background=REPORTED_BACKGROUND)
    floor = poisson_floor(light, background=REPORTED_BACKGROUND)
    assert floor.mean() == pytest.approx(float(reported.mean()), rel=3e-3)


@given(background=st.floats(0, 10))
def test_the_floor_leads_from_the_background_to_one_half(background: float) -> None:
    light = np.array([0.0, -0.0, 1e-45, 1e12, 3e38])
    expected = [background] * 3 + [0.5] * 2
    assert poisson_floor(light, background=background) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_what_is_no_light_has_no_floor() -> None:
    nonsense = np.array([-1e-3, -1e30, np.nan, np.inf, -np.inf])
    assert np.isnan(poisson_floor(nonsense, background=0.05)).all()
    assert np.isnan(expected_r_factor_parts(nonsense.reshape(-1, 1, 1))).all()


def test_floors_of_many_pixels_are_those_of_each() -> None:
    light = np.random.default_rng(3).lognormal(0, 3, (5, 100, 100)).astype(np.float32)
    floors = poisson_floor(light[:, ::-1], background=0.05)
    assert floors.shape == light.shape
    assert floors.dtype == np.float64
    assert np.array_equal(floors[4, 0, :50], poisson_floor(light[4, -1, :50], background=0.05))


@given(
    corners=st.lists(st.tuples(st.floats(-30, 60), st.floats(-30, 60)), min_size=1, max_size=6),
    origin=st.tuples(st.integers(-20, 20), st.integers(-20, 20)),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_the_scored_box_holds_the_pixels_between_positions(corners, origin, shape) -> None:
    positions = np.array(corners)
    inside = np.zeros(shape, dtype=bool)
    inside[scored_box(positions, origin=origin, shape=shape)] = True
    low, high = positions.min(axis=0), positions.max(axis=0)
    pixel = np.stack(np.indices(shape), axis=-1) + np.array(origin)
    assert np.array_equal(inside, ((pixel >= low) & (pixel <= high)).all(axis=-1))

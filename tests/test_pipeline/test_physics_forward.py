"""What the forward model, its adjoint, gauge, losses and priors promise."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from hypothesis import given  # noqa: E402  # behind the check that torch is there
from hypothesis import strategies as st  # noqa: E402

from pipeline.errors import ConfigError, SchemaError  # noqa: E402
from pipeline.physics import forward as fw  # noqa: E402
from pipeline.physics import losses, precondition, prior  # noqa: E402
from pipeline.physics.gauge import BLANK, Gauge, photons, scale_to_dose  # noqa: E402
from pipeline.simulate import forward as simulated  # noqa: E402
from pipeline.simulate.probes import hermite_modes, zone_plate_probe  # noqa: E402
from tests.physics_scans import make_scan  # noqa: E402

UNIT = Gauge(blank_in_source=BLANK)
GEOMETRY = fw.CanvasGeometry(origin=(-3, 5), shape=(40, 47))


def draw(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=shape) + 1j * rng.normal(size=shape))


def some_positions(n=24, seed=1):
    """Positions on and around the canvas, some windows partly and some wholly outside."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.uniform((-20, -15), (55, 70), (n, 2)))


def optics_of(probe, *, geometry=GEOMETRY, support=None, valid=None, gauge=UNIT):
    support = probe.shape[-1] if support is None else support
    return fw.make_optics(probe, gauge=gauge, geometry=geometry, support=support, valid=valid)


def canvas_of(obj):
    return torch.from_numpy(obj.astype(np.complex128)), fw.CanvasGeometry(origin=(0, 0), shape=obj.shape)


def predicted(scan, positions=None, obj=None, gauge=UNIT):
    """The frames that an object (the true one where None) predicts, in float64."""
    canvas, geometry = canvas_of(scan.truth if obj is None else obj)
    optics = optics_of(torch.from_numpy(scan.probe.astype(np.complex128)), geometry=geometry, gauge=gauge)
    where = torch.from_numpy(scan.positions if positions is None else positions)
    return fw.expected_intensity(canvas, where, optics)


def mean_nll(measured, prediction):
    return float(losses.poisson_nll(torch.from_numpy(measured), prediction, background=0.05).mean())


# --- extraction, propagation and their adjoint


@pytest.mark.parametrize(("n", "support", "modes"), [(16, 16, 1), (16, 10, 2), (15, 15, 1), (16, 7, 3)])
def test_the_gradient_is_the_exact_adjoint_of_the_fields(n, support, modes):
    optics = optics_of(draw(modes, n, n), support=support)
    windows = fw.windows_of(some_positions(), optics)
    canvas, fields = draw(*GEOMETRY.shape, seed=2), draw(24, modes, n, n, seed=3)
    zero = torch.zeros_like(canvas)
    seen = fw.fields_of(fw.pad_canvas(canvas, outside=0), windows, optics)
    seen = seen - fw.fields_of(fw.pad_canvas(zero, outside=0), windows, optics)  # without the blank rim: linear
    onto = fw.pad_canvas(zero, outside=0)
    fw.scatter(fw.canvas_gradient(fields, optics), windows, onto=onto)
    there = torch.vdot(seen.flatten(), fields.flatten())
    back = torch.vdot(canvas.flatten(), onto[1:-1, 1:-1].flatten()) * optics.peak
    assert abs(there - back) <= 1e-12 * abs(there)


def test_patches_are_those_of_the_simulator():
    obj, positions = draw(*GEOMETRY.shape), some_positions()
    windows = fw.windows_at(positions, geometry=GEOMETRY, support=16, dtype=torch.float64)
    found = fw.extract(fw.pad_canvas(obj, outside=0), windows)
    expected = simulated.extract_patches(obj.numpy(), positions.numpy() - np.array(GEOMETRY.origin), 16)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("n", "modes"), [(16, 1), (16, 3), (15, 1)])
def test_frames_are_those_of_the_simulator(n, modes):
    rng = np.random.default_rng(4)
    positions = rng.uniform((8, 16), (25, 40), (20, 2))  # whole windows on the canvas, whose origin is (-3, 5)
    obj, probe = draw(*GEOMETRY.shape), draw(modes, n, n, seed=5)
    found = fw.expected_intensity(obj, torch.from_numpy(positions), optics_of(probe))
    patches = simulated.extract_patches(obj.numpy(), positions - np.array(GEOMETRY.origin), n)
    np.testing.assert_allclose(found.numpy(), simulated.expected_intensity(patches, probe.numpy()), rtol=1e-11)


@pytest.mark.parametrize("n", [15, 16])
def test_the_far_field_is_unitary_and_a_flat_wave_ends_in_the_centre(n):
    waves = draw(3, n, n)
    torch.testing.assert_close(fw.far_field(waves).abs().square().sum(), waves.abs().square().sum())
    torch.testing.assert_close(fw.near_field(fw.far_field(waves)), waves)
    flat = fw.to_centre(fw.far_field(torch.ones(n, n, dtype=torch.complex128)).abs())
    assert float(flat[n // 2, n // 2]) == pytest.approx(n)
    assert torch.equal(fw.to_corner(fw.to_centre(waves)), waves)


def test_modes_add_as_intensities():
    probe, positions, canvas = draw(2, 16, 16), some_positions(), draw(*GEOMETRY.shape)
    both, *each = (fw.expected_intensity(canvas, positions, optics_of(p)) for p in (probe, probe[:1], probe[1:]))
    torch.testing.assert_close(both, each[0] + each[1])


@pytest.mark.parametrize("support", [8, 12, 16])
def test_outside_of_support_and_canvas_lies_blank_object(support):
    probe = draw(1, 16, 16)
    optics = optics_of(probe, support=support)
    frames = fw.expected_intensity(fw.blank_canvas(optics), some_positions(), optics)
    blank = fw.to_centre(fw.far_field(probe[0] * BLANK).abs().square())
    torch.testing.assert_close(frames, blank.expand_as(frames))


def test_the_canvas_changes_frames_only_through_the_support():
    probe = draw(1, 16, 16)
    optics = optics_of(probe, support=8, geometry=fw.CanvasGeometry(origin=(0, 0), shape=(16, 16)))
    canvas = fw.blank_canvas(optics)
    position = torch.tensor([[8.0, 8.0]], dtype=torch.float64)
    before = fw.expected_intensity(canvas, position, optics)
    rim = canvas.clone()
    rim[:4], rim[12:], rim[:, :4], rim[:, 12:] = 9, 9, 9, 9
    assert torch.equal(fw.expected_intensity(rim, position, optics), before)
    rim[4, 4] = 9
    assert not torch.allclose(fw.expected_intensity(rim, position, optics), before)


@pytest.mark.parametrize(("n", "side"), [(64, 32), (128, 64), (15, 8)])
def test_the_support_holds_the_energy_asked_for_and_half_the_window(n, side):
    probe = torch.zeros(1, n, n, dtype=torch.complex64)
    probe[0, n // 2, n // 2] = 1
    assert fw.support_side(probe, energy=0.999) == side
    assert fw.support_side(torch.ones(2, n, n, dtype=torch.complex64), energy=0.999) == n
    smooth = torch.from_numpy(zone_plate_probe(64))
    side = fw.support_side(smooth, energy=0.9999)
    shares = [
        float(smooth[:, i, i].abs().square().sum())
        for i in (fw.support_slice(64, side), fw.support_slice(64, side - 2))
    ]
    assert shares[1] < 0.9999 <= shares[0]


def test_adding_up_gives_the_same_bits_with_any_number_of_threads():
    optics, patches = optics_of(draw(1, 16, 16).to(torch.complex64)), draw(200, 16, 16).to(torch.complex64)
    windows = fw.windows_of(some_positions(200), optics)
    sums = []
    for n in (1, 2, 4, 1):
        torch.set_num_threads(n)
        onto = torch.zeros(GEOMETRY.shape[0] + 2, GEOMETRY.shape[1] + 2, dtype=torch.complex64)
        fw.scatter(patches, windows, onto=onto)
        sums.append(onto)
    assert all(torch.equal(s, sums[0]) for s in sums)


# --- the true object, and everything that is not it


def test_the_true_object_meets_simulated_counts_at_the_noise():
    scan = make_scan(noise=True)
    light = predicted(scan)
    chi_square = ((torch.from_numpy(scan.intensity) - light).square() / light).mean()
    assert 0.95 <= float(chi_square) <= 1.05


def test_a_wrong_geometry_raises_the_residual():
    scan = make_scan(noise=True, texture="dead-leaves")
    turned = np.ascontiguousarray(scan.intensity.swapaxes(1, 2))
    wrong = {
        "positions with exchanged axes": (scan.intensity, predicted(scan, scan.positions[:, ::-1].copy())),
        "positions half a pixel off": (scan.intensity, predicted(scan, scan.positions + 0.5)),
        "positions mirrored": (scan.intensity, predicted(scan, np.array([80.0, 0]) + scan.positions * [-1, 1])),
        "object transposed": (scan.intensity, predicted(scan, obj=scan.truth.T.copy())),
        "frames flipped": (scan.intensity[:, ::-1].copy(), predicted(scan)),
        "frames transposed": (turned, predicted(scan)),
        "frames of the position before": (np.roll(scan.intensity, 1, axis=0), predicted(scan)),
    }
    right = mean_nll(scan.intensity, predicted(scan))
    for name, (frames, light) in wrong.items():
        assert mean_nll(frames, light) > 1.5 * right, name


# --- gauge


@given(st.floats(1e-6, 1e6))
def test_the_gauge_keeps_frames_and_comes_back(c0):
    gauge, probe, obj = Gauge(blank_in_source=c0), draw(1, 16, 16), draw(20, 20)
    inside = gauge.probe_to_solver(probe)[:, None] * gauge.object_to_solver(obj)[:16, :16]
    torch.testing.assert_close(inside, probe[:, None] * obj[:16, :16])
    torch.testing.assert_close(gauge.probe_to_source(gauge.probe_to_solver(probe)), probe)
    torch.testing.assert_close(gauge.object_to_source(gauge.object_to_solver(obj)), obj)
    assert float(gauge.object_to_source(torch.tensor(BLANK))) == pytest.approx(c0, rel=1e-6)


@pytest.mark.parametrize("c0", [0.0, -1.0, math.nan, math.inf])
def test_a_gauge_without_light_is_refused(c0):
    with pytest.raises(SchemaError, match="must hold light"):
        Gauge(blank_in_source=c0)


def test_amplitudes_become_photons():
    counts = torch.arange(100, dtype=torch.float32)
    amplitude = counts.sqrt() / 988.25
    before = amplitude.clone()
    torch.testing.assert_close(photons(amplitude, photons_scale=988.25), counts)
    assert torch.equal(amplitude, before)
    energy = float(amplitude.double().square().sum())
    scaled = photons(amplitude, photons_scale=scale_to_dose(energy, photons_per_frame=1e5))
    assert float(scaled.sum()) == pytest.approx(1e5, rel=1e-5)


@pytest.mark.parametrize(("energy", "dose"), [(0.0, 1e5), (1.0, 0.0), (1.0, -1.0), (math.nan, 1.0), (1.0, math.inf)])
def test_a_dose_that_cannot_be_reached_is_refused(energy, dose):
    with pytest.raises(ConfigError, match="photons per frame"):
        scale_to_dose(energy, photons_per_frame=dose)


# --- losses


def test_the_nll_is_half_the_deviance():
    measured = torch.tensor([0.0, 1.0, 7.0], dtype=torch.float64)
    light = torch.tensor([0.2, 3.0, 5.0], dtype=torch.float64)
    found = losses.poisson_nll(measured, light - 0.05, background=0.05)
    i, lam = measured.numpy(), light.numpy()
    expected = lam - i + np.array([0, *(i[1:] * np.log(i[1:] / lam[1:]))])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    assert float(losses.poisson_nll(measured[1:], measured[1:] - 0.05, background=0.05).abs().max()) < 1e-12


def test_both_losses_agree_near_their_minimum():
    measured = torch.tensor([400.0], dtype=torch.float64)
    pair = [losses.loss_of(n, measured, measured * 1.01, background=0.05) for n in ("poisson", "amplitude")]
    torch.testing.assert_close(pair[0], pair[1], rtol=0.01, atol=0)


@pytest.mark.parametrize("name", ["poisson", "amplitude"])
def test_the_residual_is_the_steepest_way_down(name):
    field = draw(8, 8).requires_grad_()
    measured = torch.from_numpy(np.random.default_rng(6).uniform(0.5, 3, (8, 8)))
    light = field.abs().square()
    losses.loss_of(name, measured, light, background=0.0).sum().backward()
    residual = losses.residual_factor(name, measured, light.detach(), background=0.0) * field.detach()
    torch.testing.assert_close(residual, -field.grad / 4)


def test_the_residual_vanishes_at_the_measurement_whatever_the_background():
    light = torch.tensor([0.0, 1e-3, 5.0])
    for name in ("poisson", "amplitude"):
        assert torch.equal(losses.residual_factor(name, light, light, background=0.05), torch.zeros(3))


def test_bad_pixels_are_zero_even_where_they_are_nan():
    bad = torch.tensor([[True, False], [False, True]])
    values = torch.tensor([[[math.nan, 1.0], [2.0, math.inf]]])
    assert losses.without_bad(values, bad).tolist() == [[[0, 1], [2, 0]]]


def test_light_of_the_probe_is_its_energy_and_less_with_bad_pixels():
    probe = draw(2, 16, 16)
    energy = float(probe.abs().square().sum())
    assert losses.light_of_probe(probe, None) == pytest.approx(energy, rel=1e-12)
    bad = torch.zeros(16, 16, dtype=torch.bool)
    bad[0, 0] = True
    lost = float(fw.far_field(probe)[:, 0, 0].abs().square().sum())
    assert losses.light_of_probe(probe, bad) == pytest.approx(energy - lost, rel=1e-12)


# --- priors and preconditioner


def test_the_tv_gradient_is_that_of_the_smoothed_total_variation():
    canvas = (draw(12, 9) * 0.05).requires_grad_()
    down, right = canvas.roll(-1, 0) - canvas, canvas.roll(-1, 1) - canvas
    (down.abs().square() + right.abs().square() + 0.02**2).sqrt().sum().backward()
    torch.testing.assert_close(prior.tv_gradient(canvas.detach()), canvas.grad)


def test_the_laplacian_is_the_five_point_stencil():
    image = draw(12, 9)
    spectrum = prior.laplacian_spectrum((12, 9), dtype=torch.float64)
    found = torch.fft.ifft2(torch.fft.fft2(image) * spectrum)
    neighbours = sum(image.roll(step, axis) for step in (1, -1) for axis in (0, 1))
    torch.testing.assert_close(found, 4 * image - neighbours)


@pytest.mark.parametrize("name", ["quadratic", "tv"])
def test_priors_say_nothing_about_a_constant_and_grow_with_their_weight(name):
    laplacian = prior.laplacian_spectrum((12, 12), dtype=torch.float64)

    def pull(weight, canvas, peak=1600.0):
        given = prior.Prior(name=name, weight=weight)
        return prior.prior_gradient_spectrum(given, canvas, laplacian, peak=peak)

    flat = torch.full((12, 12), 0.7 + 0.1j, dtype=torch.complex128)
    assert float(pull(1.0, flat).abs().max()) < 1e-9
    rough = draw(12, 12)
    torch.testing.assert_close(pull(0.3, rough), 0.1 * pull(3.0, rough))
    torch.testing.assert_close(pull(0.3, rough), pull(0.6, rough, peak=3200.0))


def test_denominators_are_those_of_the_recipe():
    laplacian = prior.laplacian_spectrum((8, 8), dtype=torch.float64)
    expected = {"none": 0 * laplacian, "quadratic": 0.06 * laplacian**3, "tv": 0.06 / 0.02 * laplacian}
    for name, denominator in expected.items():
        found = prior.prior_denominator(prior.Prior(name=name, weight=0.03), laplacian, peak=800.0)
        torch.testing.assert_close(found, denominator)


def test_slow_phase_answers_least_whatever_the_scale_and_place_of_the_probe():
    probe = torch.from_numpy(zone_plate_probe(64))
    frequencies, response = precondition.phase_response(probe)
    assert len(frequencies) == 24
    assert float(frequencies[-1]) == 0.5
    assert float(response[0]) < 1e-6
    assert bool((response.diff() >= 0).all())
    assert 0.1 < float(response[-1]) < 2
    for other in (probe * 100j, probe.roll((5, -3), (1, 2))):
        torch.testing.assert_close(precondition.phase_response(other)[1], response, rtol=1e-3, atol=1e-5)


def test_the_phase_response_is_that_of_its_formula():
    probe = zone_plate_probe(32)[0].astype(np.complex128)
    frequencies, found = precondition.phase_response(torch.from_numpy(probe[None]))
    blank, pixels = np.fft.fft2(probe), np.arange(32)
    expected = []
    for k in frequencies.numpy():
        waves = [f(2 * np.pi * k * pixels) for f in (np.cos, np.sin)]
        changes = [np.fft.fft2(1j * probe * w) for wave in waves for w in (wave[:, None], wave[None, :])]
        parts = [((blank.conj() / abs(blank) * change).real ** 2).sum() for change in changes]
        expected.append(sum(parts) / 2 / (abs(blank) ** 2).sum())
    np.testing.assert_allclose(found.numpy(), np.maximum.accumulate(expected), rtol=1e-9, atol=1e-12)


def test_one_mode_twice_answers_like_the_mode():
    probe = torch.from_numpy(zone_plate_probe(32))
    once = precondition.phase_response(probe)[1]
    torch.testing.assert_close(precondition.phase_response(torch.cat([probe, probe]))[1], once)
    modes = torch.from_numpy(hermite_modes(probe.numpy(), 2, [0.8, 0.2]))
    assert not torch.allclose(precondition.phase_response(modes)[1], once, rtol=1e-2)


def test_a_filter_of_ones_changes_nothing_and_the_real_one_only_phase():
    update, canvas = draw(12, 10), draw(12, 10, seed=8)
    canvas[3, 3] = 0
    torch.testing.assert_close(precondition.boost_phase(update, canvas, torch.ones(12, 6).double()), update)
    boost = precondition.phase_filter(torch.from_numpy(zone_plate_probe(32)), (12, 10), dtype=torch.float64)
    assert float(boost.min()) >= 1
    assert float(boost[0, 0]) == float(boost.max())
    flat = torch.full((12, 10), 0.7 + 0j, dtype=torch.complex128)
    boosted = precondition.boost_phase(update, flat, boost)
    torch.testing.assert_close(boosted.real, update.real)
    spectrum = torch.fft.rfft2(boosted.imag) / torch.fft.rfft2(update.imag)
    torch.testing.assert_close(spectrum.real, boost)

"""What the solver promises: the true object, the same bits, and no influence of what does not count."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from hypothesis import given  # noqa: E402  # behind the check that torch is there
from hypothesis import strategies as st  # noqa: E402

from pipeline.config import PriorConfig, SolverConfig  # noqa: E402
from pipeline.errors import ConfigError, PlanError, SchemaError  # noqa: E402
from pipeline.physics import choice  # noqa: E402
from pipeline.physics.forward import CanvasGeometry, Frames  # noqa: E402
from pipeline.physics.prior import NO_PRIOR, Prior  # noqa: E402
from pipeline.physics.solver import (  # noqa: E402
    blank_state,
    canvas_over,
    prepare,
    project_amplitude,
    solve,
    step_scale,
    survey_scan,
)
from pipeline.seeding import Purpose, permutation  # noqa: E402
from tests.physics_scans import make_scan, nrmse, passes_of, passes_over  # noqa: E402

QUADRATIC = Prior(name="quadratic", weight=0.03)
TV = Prior(name="tv", weight=0.003)
SHORT = SolverConfig(iterations=6, start_iterations=3)


def states_of(passes, scan, *, config, prior=QUADRATIC, valid=None, use=None, probe=None, geometry=None, start=None):
    """Survey, preparation and all states of a solve."""
    modes = torch.from_numpy(scan.probe if probe is None else probe)
    survey = survey_scan(passes, modes, valid=valid, use=use)
    optics = prepare(survey, modes, config=config, geometry=geometry or scan.geometry, valid=valid)
    start = start or blank_state(passes, optics, use=use)
    return optics, list(solve(passes, optics, prior=prior, config=config, start=start, use=use))


def solved(passes, scan, **options):
    """The object beside the source's own probe, after the last pass."""
    optics, states = states_of(passes, scan, **options)
    return optics.gauge.object_to_source(states[-1].canvas).numpy()


def all_bits(states):
    return [torch.cat([t.flatten() for t in (s.canvas, s.momentum, s.den)]).numpy().tobytes() for s in states]


# --- the result


def test_without_noise_the_solver_comes_back_to_the_true_object():
    scan = make_scan(noise=False)
    errors = {
        support_energy: nrmse(
            solved(
                passes_of(scan),
                scan,
                prior=NO_PRIOR,
                config=SolverConfig(iterations=200, support_energy=support_energy),
            ),
            scan.truth,
        )
        for support_energy in (0.999, 1.0)
    }
    assert errors[1.0] < 0.0007  # found 0.0005, still falling
    assert errors[0.999] < 0.0017  # found 0.0012: what the rim of the probe sees is taken for blank


def test_without_noise_the_object_has_the_scale_that_the_probe_asks_for():
    scan = make_scan(noise=False)
    found = solved(passes_of(scan), scan, prior=NO_PRIOR, config=SolverConfig(iterations=100))
    a, b = found[20:-20, 20:-20], scan.truth[20:-20, 20:-20]
    assert abs(np.vdot(a, b) / np.vdot(a, a)) == pytest.approx(1, abs=1e-3)


def test_two_modes_come_back_to_the_true_object_too():
    scan = make_scan(noise=False, modes=2)
    config = SolverConfig(iterations=100, support_energy=1.0)
    assert nrmse(solved(passes_of(scan), scan, prior=NO_PRIOR, config=config), scan.truth) < 0.0025  # found 0.0016
    alone = replace(scan, probe=scan.probe[:1])
    assert nrmse(solved(passes_of(scan), alone, prior=NO_PRIOR, config=config), scan.truth) > 0.02


def test_with_noise_prior_and_poisson_beat_their_alternatives():
    scan = make_scan(noise=True)
    passes, config = passes_of(scan), SolverConfig()
    optics, states = states_of(passes, scan, config=config)
    error = nrmse(states[-1].canvas.numpy(), scan.truth)
    assert error < 0.019  # found 0.0165
    assert nrmse(solved(passes, scan, config=config, prior=NO_PRIOR), scan.truth) > 2 * error
    assert nrmse(solved(passes, scan, config=SolverConfig(loss="amplitude")), scan.truth) > 1.02 * error
    usual = itertools.islice(project_amplitude(passes, optics, start=blank_state(passes, optics)), 40)
    assert nrmse(list(usual)[-1].canvas.numpy(), scan.truth) > 2 * error


def test_the_phase_preconditioner_saves_passes(monkeypatch):
    scan, config = make_scan(noise=False), SolverConfig(iterations=20)
    error = nrmse(solved(passes_of(scan), scan, config=config), scan.truth)
    monkeypatch.setattr("pipeline.physics.solver.boost_phase", lambda update, canvas, boost: update)
    assert nrmse(solved(passes_of(scan), scan, config=config), scan.truth) > 2 * error


@pytest.mark.parametrize("factor", [0.01, 100.0, 100j])
def test_the_scale_of_the_probe_does_not_matter(factor):
    scan = make_scan(noise=True)
    once, other = (
        solved(passes_of(scan), scan, config=SolverConfig(), probe=(scan.probe * f).astype(np.complex64))
        for f in (1, factor)
    )
    assert np.linalg.norm(other * abs(factor) - once) <= 1e-4 * np.linalg.norm(once)


def test_the_canvas_may_lie_anywhere_around_the_windows():
    scan = make_scan(noise=True)
    passes = passes_of(scan)
    survey = survey_scan(passes, torch.from_numpy(scan.probe))
    tight = canvas_over(survey, side=32)
    (y, x), (height, width) = tight.origin, tight.shape
    lowest, highest = scan.positions.min(0), scan.positions.max(0)
    assert (y, x) == tuple(np.floor(lowest).astype(int) - 16)
    assert (y + height, x + width) == tuple(np.floor(highest).astype(int) + 17)
    large = CanvasGeometry(origin=(y - 9, x - 4), shape=(height + 20, width + 30))
    small, big = (solved(passes, scan, config=SolverConfig(), geometry=g) for g in (tight, large))
    assert nrmse(big[9 : 9 + height, 4 : 4 + width], small) < 1e-3


def test_double_precision_gives_the_same_object():
    scan = make_scan(noise=True)
    single, double = (
        solved(passes_of(scan), scan, config=SHORT, probe=scan.probe.astype(dtype))
        for dtype in (np.complex64, np.complex128)
    )
    assert double.dtype == np.complex128
    assert np.linalg.norm(single - double) < 1e-5 * np.linalg.norm(double)


# --- the same bits


@pytest.mark.parametrize("prior", [QUADRATIC, TV], ids=str)
def test_two_runs_have_the_same_bits_and_any_state_goes_on_to_them(prior):
    scan = make_scan(noise=True)
    passes = passes_of(scan)
    optics, states = states_of(passes, scan, config=SHORT, prior=prior)
    bits = all_bits(states)
    assert [s.iteration for s in states] == list(range(1, len(states) + 1))
    assert len(states) == (9 if prior is TV else 6)
    assert all_bits(states_of(passes, scan, config=SHORT, prior=prior)[1]) == bits
    for state in states:
        rest = list(solve(passes, optics, prior=prior, config=SHORT, start=state))
        assert all_bits(rest) == bits[state.iteration :]


def test_total_variation_starts_without_the_momentum_of_the_stage_before():
    scan = make_scan(noise=True)
    optics, states = states_of(passes_of(scan), scan, config=SHORT, prior=TV)
    still = replace(states[2], momentum=torch.zeros_like(states[2].canvas))
    rest = list(solve(passes_of(scan), optics, prior=TV, config=SHORT, start=still))
    torch.testing.assert_close(rest[-1].canvas, states[-1].canvas, rtol=0, atol=0)


def test_momentum_is_the_last_change_of_the_canvas():
    scan = make_scan(noise=True)
    states = states_of(passes_of(scan), scan, config=SHORT)[1]
    for before, after in itertools.pairwise(states):
        assert torch.equal(after.momentum, after.canvas - before.canvas)
        assert after.den is before.den


def test_batches_change_the_object_only_by_rounding():
    scan = make_scan(noise=True)
    a, b = (solved(passes_of(scan, batch=n), scan, config=SHORT) for n in (50, 7))
    assert np.linalg.norm(a - b) < 1e-5 * np.linalg.norm(a)


def test_nothing_that_streams_in_is_changed():
    scan = make_scan(noise=True)
    batches = list(passes_of(scan)())
    batches = [Frames(b.intensity.double(), b.positions, b.index) for b in batches]
    before = [[t.clone() for t in b[:3]] for b in batches]
    valid = torch.ones(32, 32, dtype=torch.bool)
    valid[3, 5] = False
    probe = scan.probe.copy()
    states_of(lambda: batches, scan, config=SHORT, valid=valid)
    assert all(
        torch.equal(t, u) for b, old in zip(batches, before, strict=True) for t, u in zip(b[:3], old, strict=True)
    )
    assert np.array_equal(scan.probe, probe)


# --- what does not count


@pytest.mark.parametrize("loss", ["poisson", "amplitude"])
def test_bad_pixels_have_no_influence(loss):
    scan, config = make_scan(noise=True), replace(SHORT, loss=loss)
    valid = torch.ones(32, 32, dtype=torch.bool)
    valid[2:6, 20:30], valid[16, 16] = False, False
    spoiled = scan.intensity.copy()
    spoiled[:, ~valid.numpy()] = np.resize([math.nan, math.inf, -7, 1e9], spoiled[:, ~valid.numpy()].shape)
    clean, dirty = (
        states_of(passes_over(frames, scan.positions), scan, config=config, valid=valid)[1]
        for frames in (scan.intensity, spoiled)
    )
    assert all_bits(clean) == all_bits(dirty)
    assert np.isfinite(clean[-1].canvas.numpy()).all()
    unmasked = states_of(passes_of(scan), scan, config=config)[1]
    assert all_bits(unmasked) != all_bits(clean)


def test_bad_pixels_do_not_move_the_gauge():
    scan = make_scan(noise=True)
    probe = torch.from_numpy(scan.probe)
    blank = np.abs(np.fft.fftshift(np.fft.fft2(0.3 * scan.probe[0], norm="ortho"))) ** 2
    frames = np.repeat(blank[None], 160, axis=0)
    valid = torch.from_numpy(np.add.outer(np.arange(32), np.arange(32)) % 5 > 1)
    valid[12:20] = False
    for mask in (None, valid):
        survey = survey_scan(passes_over(frames, scan.positions), probe, valid=mask)
        assert survey.gauge.blank_in_source == pytest.approx(0.3, rel=1e-5)
        good = blank if mask is None else blank[mask.numpy()]
        assert survey.mean_counts == pytest.approx(good.mean(), rel=1e-5)


def test_with_bad_pixels_the_solver_still_comes_back_to_the_true_object():
    scan = make_scan(noise=False)
    valid = torch.ones(32, 32, dtype=torch.bool)
    valid[12:15, 18:22], valid[:, 7] = False, False
    frames = np.where(valid.numpy(), scan.intensity, 1e6)
    config = SolverConfig(iterations=100)
    found = solved(passes_over(frames, scan.positions), scan, config=config, prior=NO_PRIOR, valid=valid)
    assert nrmse(found, scan.truth) < 0.0035
    unmasked = solved(passes_over(frames, scan.positions), scan, config=config, prior=NO_PRIOR)
    assert not nrmse(unmasked, scan.truth) < 0.1


def test_frames_that_do_not_count_have_no_influence():
    scan = make_scan(noise=True)
    use = np.ones(160, dtype=bool)
    use[3:40:5], use[100:150] = False, False  # the third batch goes whole
    frames, positions = scan.intensity.copy(), scan.positions.copy()
    frames[~use], positions[~use] = math.nan, math.nan
    clean = states_of(passes_of(scan), scan, config=SHORT, use=use)[1]
    assert all_bits(states_of(passes_over(frames, positions), scan, config=SHORT, use=use)[1]) == all_bits(clean)
    without = states_of(passes_over(scan.intensity[use], scan.positions[use]), scan, config=SHORT)[1]
    difference = (without[-1].canvas - clean[-1].canvas).norm() / clean[-1].canvas.norm()
    assert float(difference) < 1e-5


# --- the choice of the prior


def split_of(scan, seed=0):
    order = permutation(seed, Purpose.HELD_OUT, n=len(scan.positions))
    return choice.split_frames(order, scan.positions, np.ones(len(scan.positions), dtype=bool))


def truth_in(optics, scan):
    return torch.from_numpy(scan.truth) / optics.gauge.probe_factor


def test_scores_are_means_over_good_pixels_of_the_frames_that_judge():
    scan, probe = make_scan(noise=True), torch.from_numpy(make_scan(noise=True).probe)
    split = split_of(scan)
    valid = torch.ones(32, 32, dtype=torch.bool)
    valid[4, 9] = False
    survey = survey_scan(passes_of(scan), probe)
    optics = prepare(survey, probe, config=SHORT, geometry=scan.geometry, valid=valid)

    def scores(counted, bad):
        spoiled = scan.intensity.copy()
        spoiled[~counted] = 1e5
        spoiled[:, 4, 9] = bad
        passes = passes_over(spoiled, scan.positions)
        canvas = truth_in(optics, scan)
        return choice.held_out_scores(passes, canvas, optics, split=split, loss="poisson", background=0.05)

    at_truth = scores(split.judged, 0.0)
    assert at_truth == scores(split.judged, math.nan)
    assert at_truth[0] == pytest.approx(at_truth[1], rel=0.05)  # the truth is as good as noise lets it be
    one = np.flatnonzero(split.judged)[0]
    assert scores(split.judged & (np.arange(160) != one), 0.0)[0] > 100


@pytest.mark.parametrize("loss", ["poisson", "poisson-background", "amplitude"])
def test_a_witness_tells_what_a_pass_of_its_own_would(loss):
    scan, probe = make_scan(noise=True), torch.from_numpy(make_scan(noise=True).probe)
    split, config = split_of(scan), replace(SHORT, loss=loss)
    optics = prepare(survey_scan(passes_of(scan), probe), probe, config=config, geometry=scan.geometry)
    witness = choice.HeldOutWitness(optics, split=split, loss=loss, background=0.05)
    start = blank_state(passes_of(scan), optics, use=split.solved)
    state = next(
        solve(passes_of(scan), optics, prior=TV, config=config, start=start, use=split.solved, witness=witness)
    )
    told = witness.told()  # of the canvas before the step
    alone, floor = choice.held_out_scores(
        passes_of(scan), start.canvas, optics, split=split, loss=loss, background=0.05
    )
    assert told == pytest.approx(alone, rel=1e-5)
    assert witness.told() is None
    assert (floor is None) == (loss == "amplitude")
    after, _ = choice.held_out_scores(passes_of(scan), state.canvas, optics, split=split, loss=loss, background=0.05)
    assert after < alone


@given(seed=st.integers(0, 1000), n=st.integers(2, 400))
def test_a_tenth_is_held_out_and_somebody_judges(seed, n):
    positions = np.random.default_rng(seed).uniform(20, 60, (n, 2))
    eligible = np.random.default_rng(seed + 1).random(n) < 0.9
    order = permutation(seed, Purpose.HELD_OUT, n=n)
    if not eligible.any():
        return
    low, high = positions[eligible].min(0), positions[eligible].max(0)
    central = eligible & (np.abs(positions - (low + high) / 2) <= 0.35 * (high - low)).all(1)
    if not central.any() or eligible.sum() < 2:
        with pytest.raises(PlanError):
            choice.split_frames(order, positions, eligible)
        return
    split = choice.split_frames(order, positions, eligible)
    assert split.judged.any()
    assert np.array_equal(split.judged, split.held & central)
    assert abs(int(split.held.sum()) - round(0.1 * n)) <= 1
    assert (eligible & split.solved).any()
    again = choice.split_frames(order, positions, eligible)
    assert np.array_equal(split.held, again.held)


def test_another_seed_holds_out_other_frames():
    scan = make_scan(noise=True)
    assert not np.array_equal(split_of(scan, 0).held, split_of(scan, 1).held)


def test_a_scan_without_a_middle_cannot_be_judged():
    line = np.array([[20.0, 20.0], [60.0, 60.0]])
    with pytest.raises(PlanError, match="none lies in the middle"):
        choice.split_frames(np.arange(2), line, np.ones(2, dtype=bool))


@pytest.mark.parametrize(
    ("asked", "tried"),
    [
        ({}, 7),
        ({"name": "tv"}, 3),
        ({"name": "quadratic"}, 4),
        ({"name": "tv", "weight": 0.5}, 1),
    ],
    ids=str,
)
def test_the_candidates_are_those_that_were_asked_for(asked, tried):
    candidates = choice.candidates_of(PriorConfig(**asked))
    assert len(candidates) == tried
    assert {prior.name for prior in candidates} <= {asked.get("name", "quadratic"), asked.get("name", "tv")}


# --- refusals


def test_the_survey_refuses_what_cannot_be_solved():
    scan = make_scan(noise=True)
    probe = torch.from_numpy(scan.probe)
    with pytest.raises(SchemaError, match="no frame counts"):
        survey_scan(passes_of(scan), probe, use=np.zeros(160, dtype=bool))
    lost = scan.positions.copy()
    lost[77, 1] = math.nan
    with pytest.raises(SchemaError, match="not finite"):
        survey_scan(passes_over(scan.intensity, lost), probe)
    for frames, light in ((scan.intensity * 0, probe), (scan.intensity, probe * 0), (scan.intensity * math.nan, probe)):
        with pytest.raises(SchemaError, match="must hold light"):
            survey_scan(passes_over(frames, scan.positions), light)


def test_a_canvas_away_from_all_windows_is_refused():
    scan = make_scan(noise=True)
    with pytest.raises(SchemaError, match="touches the canvas"):
        states_of(passes_of(scan), scan, config=SHORT, geometry=CanvasGeometry(origin=(500, 500), shape=(40, 40)))


def test_empty_margins_do_not_lengthen_the_step():
    den = torch.rand(30, 30) + 0.1
    wide = torch.nn.functional.pad(den, (400, 400, 400, 400))
    assert step_scale(wide, quantile=0.99) == step_scale(den, quantile=0.99)


@pytest.mark.parametrize(
    "wrong",
    [
        {"loss": "mae"},
        {"iterations": -1},
        {"start_iterations": -1},
        {"start_weight": -0.1},
        {"step": 0.0},
        {"step": 2.0},
        {"background": 0.0},
        {"support_energy": 1.1},
        {"quantile": 0.0},
    ],
    ids=lambda wrong: f"{wrong}",
)
def test_constants_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"solver.{next(iter(wrong))}"):
        SolverConfig(**wrong)


# --- the benchmark does not rot

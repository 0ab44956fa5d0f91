"""The estimate of a scan: evidence decides, held-out frames choose, and a stop anywhere changes no bit."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from hypothesis import given, settings  # noqa: E402  # behind the check that torch is there
from hypothesis import strategies as st  # noqa: E402

from pipeline.config import PriorConfig, ReconstructConfig, RefineChoice, RefineConfig, SolverConfig  # noqa: E402
from pipeline.errors import ConfigError, DivergedError  # noqa: E402
from pipeline.learning.estimate import Evidence, estimate, reason_to_refine  # noqa: E402
from pipeline.learning.journal import Journal  # noqa: E402
from pipeline.learning.judging import finite  # noqa: E402
from pipeline.physics.choice import held_out_scores  # noqa: E402
from pipeline.physics.passes import ScanPasses, open_scene  # noqa: E402
from pipeline.physics.solver import blank_state, solve  # noqa: E402
from tests.physics_scans import Scan, make_scan, nrmse  # noqa: E402
from tests.solved_stores import quiet, stopped_after, store_of  # noqa: E402

KNOWN = ReconstructConfig(
    prior=PriorConfig(choice_iterations=6),
    solver=SolverConfig(iterations=8, start_iterations=3, batch_pixels=50 * 32 * 32),
)
REFINED = ReconstructConfig(
    prior=PriorConfig(name="tv"),
    solver=SolverConfig(iterations=8, start_iterations=3, batch_pixels=50 * 2 * 32 * 32),
    refine=RefineConfig(what="probe,positions", modes=2, iterations=8, start_passes=2, choice_iterations=4),
)


@functools.cache
def good_scan() -> Scan:
    return make_scan(noise=True)


@functools.cache
def hard_scan() -> tuple[Scan, np.ndarray, np.ndarray]:
    """Two modes and moved positions, of which the store tells a wrong one and the wrong places."""
    scan = make_scan(noise=True, modes=2, n_frames=240)
    rng = np.random.default_rng(5)
    wrong = scan.probe[:1] * np.exp(0.4j * np.hypot(*np.mgrid[-16:16, -16:16]) / 16).astype(np.complex64)
    return scan, wrong.astype(np.complex64), scan.positions + rng.normal(0, 0.4, scan.positions.shape)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store_of(good_scan(), tmp_path_factory.mktemp("estimate") / "good.zarr")


@pytest.fixture(scope="module")
def hard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scan, probe, positions = hard_scan()
    return store_of(scan, tmp_path_factory.mktemp("estimate") / "hard.zarr", probe=probe, positions=positions)


def found_in(store: Path, config: ReconstructConfig, folder: Path, tell=quiet):
    folder.mkdir(exist_ok=True)
    journal = Journal(folder, identity={}, tell=tell)
    return estimate(open_scene(store, photons_per_frame=config.photons_per_frame), config, journal), journal


def bits(found) -> bytes:
    parts = [found.canvas, found.den, found.optics.probe, found.shift, found.gain]
    text = repr([(trial.prior, trial.loss, trial.floor, trial.curve) for trial in found.trials])
    return b"".join(part.contiguous().numpy().tobytes() for part in parts if part is not None) + text.encode()


# --- what is decided


def test_a_probe_that_explains_the_frames_is_left_alone(good: Path, tmp_path: Path) -> None:
    found, _ = found_in(good, KNOWN, tmp_path / "run")
    assert found.refined == "none"
    assert found.evidence is not None
    assert found.evidence.nll < 1.1 * found.evidence.floor
    assert found.chosen.loss == min(trial.loss for trial in found.trials)
    assert nrmse(found.optics.gauge.object_to_source(found.canvas).numpy()[:80, :80], good_scan().truth) < 0.5


def test_a_probe_that_does_not_is_refined_with_four_modes(hard: Path, tmp_path: Path) -> None:
    config = ReconstructConfig(
        prior=PriorConfig(name="tv", weight=0.01), solver=REFINED.solver,
        refine=RefineConfig(iterations=2, start_passes=1, choice_iterations=2),
    )  # fmt: skip
    found, _ = found_in(hard, config, tmp_path / "run")
    assert found.refined == "probe,positions"
    assert len(found.optics.probe) == 4
    assert "do not explain" in found.reason


@pytest.mark.parametrize(
    ("asked", "evidence", "said"),
    [
        ("none", None, "that was not asked for"),
        ("probe", None, "that was asked for"),
        ("auto", None, "the photon scale is unknown"),
        ("auto", Evidence(nll=11.11, floor=0.33, counts_per_pixel=9.0), "do not explain the frames"),
        ("auto", Evidence(nll=0.52, floor=0.5, counts_per_pixel=9.0), "not more than 10 % above"),
        ("auto", Evidence(nll=0.52, floor=0.5, counts_per_pixel=0.1), "not more than 10 % above"),
        ("auto", Evidence(nll=0.56, floor=0.5, counts_per_pixel=99.0), "not more than 0.005 of the mean counts"),
    ],
)
def test_the_reason_is_what_decided(asked: RefineChoice, evidence: Evidence | None, said: str) -> None:
    reason = reason_to_refine(asked, evidence)
    assert said in reason
    if evidence is not None:
        assert f"{evidence.nll:.4g} a pixel with the stored probe, photon noise alone {evidence.floor:.4g}" in reason
        assert evidence.asks_to_refine is ("do not explain" in reason)


def test_frames_of_unknown_scale_are_solved_by_amplitude_and_never_refined_unasked(tmp_path: Path) -> None:
    store = store_of(good_scan(), tmp_path / "a.zarr", scale=None)
    found, _ = found_in(store, KNOWN, tmp_path / "run")
    assert (found.solver.loss, found.refined) == ("amplitude", "none")
    assert "unknown" in found.reason
    assert found.chosen.floor is None


def test_a_declared_dose_makes_photons_of_amplitudes(tmp_path: Path) -> None:
    scan = good_scan()
    photons = float(scan.intensity.sum((1, 2)).mean())
    store = store_of(scan, tmp_path / "a.zarr", scale=None)
    config = ReconstructConfig(prior=KNOWN.prior, solver=KNOWN.solver, photons_per_frame=photons)
    found, _ = found_in(store, config, tmp_path / "run")
    same, _ = found_in(store_of(scan, tmp_path / "c.zarr"), KNOWN, tmp_path / "other")
    assert found.solver.loss == "poisson"
    assert float((found.canvas - same.canvas).norm() / same.canvas.norm()) < 1e-4


def test_the_candidates_are_judged_by_frames_that_their_solves_have_not_seen(good: Path, tmp_path: Path) -> None:
    found, _ = found_in(good, KNOWN, tmp_path / "run")
    scene = open_scene(good)
    config = SolverConfig(iterations=6, start_iterations=3, batch_pixels=KNOWN.solver.batch_pixels)
    with ScanPasses(scene, batch_pixels=config.batch_pixels, n_modes=1) as passes:
        for trial in (found.trials[2], found.trials[-1]):  # quadratic; total variation, whose start is shared
            start = blank_state(passes, found.optics, use=found.split.solved)
            *_, last = solve(
                passes, found.optics, prior=trial.prior, config=config, start=start, use=found.split.solved
            )
            scores = held_out_scores(
                passes, last.canvas, found.optics, split=found.split, loss="poisson", background=0.05
            )
            assert scores == (trial.loss, trial.floor)
            assert trial.curve[-1] == (last.iteration, trial.loss)


def test_more_modes_than_there_are_need_a_refinement(good: Path, tmp_path: Path) -> None:
    config = ReconstructConfig(refine=RefineConfig(what="none", modes=2))
    with pytest.raises(ConfigError, match="2 probe modes, and the store has 1") as refused:
        found_in(good, config, tmp_path / "run")
    assert refused.value.hint == "--refine probe"


# --- what is mended


def test_refinement_mends_positions_and_gains(tmp_path: Path) -> None:
    scan = make_scan(noise=False, n_frames=240, photons=1e6)
    lit = 1 + 0.2 * np.random.default_rng(6).uniform(-1, 1, 240)
    counts = np.random.default_rng(7).poisson(scan.intensity * lit[:, None, None]).astype(np.float64)
    positions = scan.positions + np.random.default_rng(5).normal(0, 0.4, scan.positions.shape)
    store = store_of(replace(scan, intensity=counts), tmp_path / "s.zarr", positions=positions)
    prior = PriorConfig(name="quadratic", weight=0.03)
    before, _ = found_in(store, ReconstructConfig(prior=prior, refine=RefineConfig(what="none")), tmp_path / "before")
    mended = RefineConfig(what="probe,positions", iterations=30)
    after, _ = found_in(store, ReconstructConfig(prior=prior, refine=mended), tmp_path / "after")
    assert after.chosen.loss < 0.8 * before.chosen.loss
    assert after.shift is not None
    assert after.gain is not None
    moved, wanted = (
        without_affine(shift, scan.positions) for shift in (after.shift.numpy(), scan.positions - positions)
    )
    assert np.linalg.norm(wanted - moved) < 0.6 * np.linalg.norm(wanted)
    assert np.abs(after.shift.numpy()).max() <= 1.5
    assert np.abs(after.shift.numpy().mean(0)).max() < 0.01
    assert np.corrcoef(after.gain.numpy(), lit)[0, 1] > 0.95
    assert float(after.gain.mean()) == pytest.approx(1, abs=1e-9)


def without_affine(shift: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """What no other object grid explains."""
    basis = np.column_stack([np.ones(len(positions)), positions])
    return shift - basis @ np.linalg.lstsq(basis, shift, rcond=None)[0]


def test_refinement_mends_the_probe(hard: Path, tmp_path: Path) -> None:
    prior = PriorConfig(name="quadratic", weight=0.03)
    losses = []
    for what in ("none", "probe"):
        refined = RefineConfig(what=what, modes=None if what == "none" else 2, iterations=30)
        found, _ = found_in(hard, ReconstructConfig(prior=prior, refine=refined), tmp_path / what)
        losses.append(found.chosen.loss)
    assert losses[1] < 1.05 * found.chosen.floor
    assert losses[0] > 3 * losses[1]


def test_positions_stay_where_only_the_probe_is_refined(hard: Path, tmp_path: Path) -> None:
    config = ReconstructConfig(
        prior=PriorConfig(name="tv", weight=0.01), solver=REFINED.solver,
        refine=RefineConfig(what="probe", iterations=7, start_passes=1, choice_iterations=2),
    )  # fmt: skip
    found, _ = found_in(hard, config, tmp_path / "run")
    assert found.shift is None
    assert len(found.optics.probe) == 1


# --- the same bits


@pytest.mark.parametrize("case", ["known", "refined"])
def test_workers_change_no_bit(case: str, good: Path, hard: Path, tmp_path: Path) -> None:
    store, config = (good, KNOWN) if case == "known" else (hard, REFINED)
    alone, _ = found_in(store, config, tmp_path / "a")
    helped, _ = found_in(store, replace(config, num_workers=2), tmp_path / "b")
    assert bits(helped) == bits(alone)


@pytest.mark.parametrize("case", ["known", "refined"])
def test_a_run_stopped_anywhere_goes_on_to_the_same_bits(
    case: str, good: Path, hard: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store, config = (good, KNOWN) if case == "known" else (hard, REFINED)
    whole, journal = found_in(store, config, tmp_path_factory.mktemp("whole"))
    total = sum(phase.passes for phase in journal.phases)

    @settings(max_examples=5, deadline=None)
    @given(stops=st.lists(st.integers(0, total), min_size=1, max_size=3))
    def check(stops: list[int]) -> None:
        folder = tmp_path_factory.mktemp("stopped")
        for passes in stops:
            try:
                found_in(store, config, folder, stopped_after(passes))
            except KeyboardInterrupt:
                continue
            break
        again, resumed = found_in(store, config, folder)
        assert bits(again) == bits(whole)
        assert [(p.name, p.passes) for p in resumed.phases] == [(p.name, p.passes) for p in journal.phases]

    check()


@pytest.mark.parametrize("case", ["known", "refined"])
def test_what_was_done_before_a_stop_is_not_done_again(case: str, good: Path, hard: Path, tmp_path: Path) -> None:
    store, config = (good, KNOWN) if case == "known" else (hard, REFINED)
    counted: list[int] = []

    def counting(name: str, passes: int):
        calls: list[int] = []

        def advance(done: int) -> None:
            calls.append(done)
            if len(calls) > 1:  # the first call tells what was done before
                counted.append(done)

        return advance

    found_in(store, config, tmp_path / "whole", counting)
    total = sum(counted)
    counted.clear()
    stop = total - 3  # in the middle of the last phase
    with pytest.raises(KeyboardInterrupt):
        found_in(store, config, tmp_path / "run", stopped_after(stop))
    found_in(store, config, tmp_path / "run", counting)
    assert sum(counted) <= total - stop + 1


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e4])
def test_a_solve_that_blows_up_names_the_pass(value: float) -> None:
    from pipeline.physics.solver import SolverState

    canvas = torch.full((3, 3), value, dtype=torch.complex64)
    state = SolverState(canvas=canvas, momentum=canvas, iteration=1, den=canvas.real)
    with pytest.raises(DivergedError, match="solve: pass 1"):
        list(finite(iter([state]), "solve"))


def test_a_step_that_is_too_long_ends_the_run(good: Path, tmp_path: Path) -> None:
    solver = replace(KNOWN.solver, step=1.99, iterations=40)
    with pytest.raises(DivergedError, match="left an object of up to") as refused:
        found_in(good, replace(KNOWN, solver=solver, refine=RefineConfig(what="none")), tmp_path / "run")
    assert "solver.step" in str(refused.value.hint)


def test_the_flat_object_is_judged_by_the_same_frames(good: Path, tmp_path: Path) -> None:
    found, _ = found_in(good, KNOWN, tmp_path / "run")
    assert found.flat_loss == found.trials[0].curve[0][1]  # a solve begins with it
    assert found.chosen.loss < 0.8 * found.flat_loss


def test_a_refinement_tells_its_loss_on_frames_that_it_does_not_use(hard: Path, tmp_path: Path) -> None:
    found, _ = found_in(hard, REFINED, tmp_path / "run")
    assert [number for number, _ in found.refining] == list(range(8))
    assert found.refining[-1][1] < 0.8 * found.refining[0][1]


def test_a_phase_counts_its_own_passes(good: Path, tmp_path: Path) -> None:
    told: dict[str, int] = {}

    def counting(name: str, passes: int):
        told[name] = told.get(name, 0) - 1  # the first call tells what was done before
        return lambda done: told.update({name: told[name] + 1})

    _, journal = found_in(good, KNOWN, tmp_path / "run", counting)
    assert {phase.name: phase.passes for phase in journal.phases} == told


def test_states_of_settled_choices_are_not_kept(good: Path, tmp_path: Path) -> None:
    found_in(good, KNOWN, tmp_path / "run")
    kept = {path.name for path in (tmp_path / "run").iterdir() if ".facts." not in path.name}
    assert kept == {"choice tv start.safetensors", "solve.safetensors"}


def test_a_pass_given_up_in_the_middle_leaves_the_next_one_whole(good: Path) -> None:
    with ScanPasses(open_scene(good), batch_pixels=KNOWN.solver.batch_pixels, n_modes=1) as passes:
        next(given_up := passes())
        given_up.close()
        whole = torch.cat([frames.index for frames in passes()])
    assert torch.equal(whole, torch.arange(len(whole)))


def test_mode_shapes_are_independent_and_keep_the_energy() -> None:
    from pipeline.physics.refine import with_modes

    probe = torch.from_numpy(good_scan().probe)
    more = with_modes(probe, 6)
    assert torch.equal(with_modes(more, 4), more[:4])
    assert float(more.abs().square().sum()) == pytest.approx(float(probe.abs().square().sum()), rel=1e-5)
    flat = more.reshape(6, -1)
    gram = (flat @ flat.conj().T).abs()
    share = gram.diagonal() / gram.diagonal().sum()
    assert share[1:].tolist() == pytest.approx([0.05] * 5, rel=1e-4)
    assert torch.linalg.matrix_rank(flat / flat.norm(dim=1, keepdim=True)) == 6
    two = with_modes(probe, 2)
    assert float((with_modes(two, 3)[2] / more[2] - 1).abs().nan_to_num().max()) < 0.2  # the shape of the third

"""Benchmarks run at tiny size, so that they cannot rot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks import convert, formats


@pytest.mark.long
def test_the_conversion_benchmark_measures_all_three_programs(tmp_path: Path) -> None:
    rows = convert.measure(tmp_path, n_frames=8, side=16, photons=1e3, repeats=1)
    assert len(rows) == 6
    for row in rows:
        assert {row[program]["cpu"] > 0 for program in convert.PROGRAMS} == {True}


def test_the_table_of_formats_finds_every_stack_exact() -> None:
    table = formats.table(8, 32, doses=(1e3,))
    assert table.count("bit for bit") == 16
    assert "not exact" not in table


def test_benchmark_counts_are_about_as_bright_as_asked_for() -> None:
    counts = convert.make_counts(64, 32, 1e4)
    np.testing.assert_allclose(counts.sum(axis=(1, 2)).mean(), 1e4, rtol=0.02)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread for torch, as the benchmark has it; skips where torch is not installed."""
    torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def cells_of(table: str) -> list[list[str]]:
    """The cells of a markdown table, its head first."""
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    return [head, *rows]


@pytest.mark.usefixtures("one_thread")
def test_the_solver_benchmark_prints_errors_and_the_choice_on_a_known_object(tmp_path: Path) -> None:
    from benchmarks.solver import Plan, known_tables, measure_known
    from pipeline.config import PriorConfig, ReconstructConfig, SolverConfig
    from pipeline.learning.journal import Journal
    from tests.physics_scans import make_scan
    from tests.solved_stores import quiet, store_of

    config = ReconstructConfig(
        prior=PriorConfig(choice_iterations=6),
        solver=SolverConfig(iterations=8, start_iterations=3, batch_pixels=50 * 32 * 32),
    )
    plan = Plan(config=config, scored=(20, 60), known_at=(2, 8))
    store = store_of(make_scan(noise=True), tmp_path / "s.zarr")
    known = measure_known("small", store, Journal(tmp_path, identity={}, tell=quiet), plan)
    courses, losses, chosen = map(cells_of, known_tables([known], plan).split("\n\n"))
    assert courses[0][1:] == ["2", "8"]
    solver, projection = ([float(cell.partition(" @")[0]) for cell in row[1:]] for row in courses[1:])
    assert solver[1] < solver[0] < 1
    assert solver[1] < projection[1] < 1
    found = dict(zip(losses[0][1:-1], losses[1][1:-1], strict=True))
    best = min(found, key=lambda prior: float(found[prior].strip("*")))
    assert [prior for prior, loss in found.items() if loss.startswith("**")] == [best] == [chosen[1][1]]
    assert 0 < float(chosen[1][2]) < solver[0]
    assert list(known.cpu_s) == ["evidence", "choice", "solve", "all"]
    assert sum(list(known.cpu_s.values())[:3]) < known.cpu_s["all"]


@pytest.mark.usefixtures("one_thread")
def test_the_solver_benchmark_judges_a_refined_probe_beside_the_stored_one(tmp_path: Path) -> None:
    from benchmarks.solver import Plan, measure_measured, measured_table
    from tests.physics_scans import make_scan
    from tests.solved_stores import store_of

    scan = make_scan(noise=True)
    wrong = scan.probe * np.exp(0.4j * np.hypot(*np.mgrid[-16:16, -16:16])).astype(np.complex64)
    store = store_of(scan, tmp_path / "s.zarr", probe=wrong.astype(np.complex64))
    plan = Plan(held_at=(4,), refined_at=(4, 8), modes=(1, 2), epie_steps=(1.0, 1.0, 0.2, 0.2, 0.2))
    head, *rows = cells_of(measured_table(measure_measured(store, plan)))
    assert [int(row[1]) for row in (*rows[:2], rows[3])] == [4, 5, 5]
    assert [int(row[1]) for row in rows[5:]] == [4, 8, 4, 8]
    held, epie, epie_best, shuffled, shuffled_best, *refined = (float(row[head.index("held-out NLL")]) for row in rows)
    assert epie_best <= epie < held
    assert shuffled_best <= shuffled < held
    assert shuffled != epie
    assert refined[1] < refined[0] < held
    floors = [float(row[head.index("photon noise alone")]) for row in rows]
    assert floors[6] < refined[1]
    spent = [float(row[head.index("CPU-s")]) for row in rows]
    assert spent[2] <= spent[1]
    assert spent[5] <= spent[6]


@pytest.mark.usefixtures("one_thread")
def test_the_training_benchmark_compares_network_and_solver_on_the_scan_of_another_object(tmp_path: Path) -> None:
    from benchmarks.training import measure, tables
    from tests.physics_scans import make_scan
    from tests.solved_stores import store_of

    settings = {
        "refine.what": "none", "prior.name": "quadratic", "prior.weight": 0.03, "solver.iterations": 4,
        "solver.batch_pixels": 51200, "fit.steps": 5, "stream.batch_size": 40, "network.width": 4,
    }  # fmt: skip
    stores = {
        title: tuple(
            store_of(make_scan(noise=True, n_frames=n, texture=title), tmp_path / f"{title}{n}.zarr") for n in (100, 90)
        )
        for title in ("lines", "dead-leaves")
    }
    rows = list(measure(stores, tmp_path, seeds=[3], scored=(20, 60), settings=settings))
    each, medians = map(cells_of, tables(rows).split("\n\n"))
    assert [row[:2] for row in each[1:]] == [[name, "3"] for name in (*stores, "lines, used on dead-leaves")]
    assert {0 < float(row[3]) < 1 for row in each[1:]} == {True}
    assert [row[:2] for row in medians[1:]] == [["lines", "1"], ["dead-leaves", "1"]]
    assert medians[0][5:] == ["choice, CPU-s", "solve, CPU-s", "halves, CPU-s", "fit, CPU-s"]


@pytest.mark.long
@pytest.mark.usefixtures("one_thread")
def test_the_step_benchmark_puts_every_model_beside_the_plain_one(tmp_path: Path) -> None:
    from benchmarks.train_step import CASES, PLAIN, costs_table, measure
    from tests.physics_scans import make_scan
    from tests.solved_stores import store_of

    store = store_of(make_scan(noise=True, n_frames=200), tmp_path / "s.zarr")
    head, *rows = cells_of(costs_table(measure(store, tmp_path, n=1), n_frames=200))
    assert [row[0] for row in rows] == [PLAIN, *(f"{model}, gridsize {gridsize}" for model, gridsize in CASES)]
    assert [int(row[2]) for row in rows] == [16, 192, 32, 32, 16, 64]
    assert rows[0][-1] == "1.00"
    assert {float(row[head.index("CPU-s a step")]) > 0 for row in rows} == {True}


@pytest.mark.long
@pytest.mark.usefixtures("one_thread")
def test_the_models_benchmark_puts_networks_between_true_patches_and_the_flat_object(tmp_path: Path) -> None:
    from benchmarks.models import bounds, measure, rows_table
    from tests.physics_scans import make_scan
    from tests.solved_stores import store_of

    pair = store_of(make_scan(noise=True), tmp_path / "a.zarr"), store_of(make_scan(noise=True), tmp_path / "b.zarr")
    settings = {
        "solver.iterations": 4, "solver.batch_pixels": 51200, "fit.steps": 5, "stream.batch_size": 16,
        "network.width": 4,
    }  # fmt: skip
    flat, perfect = bounds(pair[1], scored=(20, 60))
    assert perfect < 0.1 < flat < 1
    row = measure("grf", pair, "patch:1", tmp_path / "w", seed=0, settings=settings, scored=(20, 60))
    assert row.aligned is not None
    assert perfect < row.raw < 1
    (line,) = cells_of(rows_table([row], {"grf": (flat, perfect)}))[1:]
    assert line[:3] == ["grf", "patch:1", "0"]


def test_settings_to_be_tried_are_drawn_once_each_and_ranked_by_their_error() -> None:
    pytest.importorskip("torch", reason="the extra `train` is not installed")
    from benchmarks.tuning import Trial, drawn, trials_table

    found = drawn("cnn:2", trials=24, seed=0)
    assert len({str(one) for one in found}) == 24
    assert found == drawn("cnn:2", trials=24, seed=0)
    assert {one["stream.batch_size"] for one in found} <= {2, 4, 8, 16}
    trials = [Trial(settings=one, steps=10, cpu_s=1.0, error=0.1 / (n + 1)) for n, one in enumerate(found)]
    head, *rows = cells_of(trials_table(trials))
    assert head[0] == "complex NRMSE"
    assert [float(row[0]) for row in rows] == sorted(float(row[0]) for row in rows)


def test_the_slopes_of_a_frame_are_its_finite_differences() -> None:
    pytest.importorskip("torch", reason="the extra `train` is not installed")
    from benchmarks.one_frame import slopes

    rng = np.random.default_rng(0)
    amplitude, phase = rng.uniform(0.5, 1, (6, 6)), rng.uniform(-0.5, 0.5, (6, 6))
    probe = rng.normal(size=(6, 6)) + 1j * rng.normal(size=(6, 6))

    def roots(values: np.ndarray) -> np.ndarray:
        patch = (values[:36] * np.exp(1j * values[36:])).reshape(6, 6)
        return np.abs(np.fft.fft2(patch * probe, (16, 16), norm="ortho")).ravel()

    at = np.concatenate([amplitude.ravel(), phase.ravel()])
    found = slopes(amplitude * np.exp(1j * phase), probe, 16)
    step = 1e-6 * np.eye(72)
    slow = np.stack([(roots(at + one) - roots(at - one)) / 2e-6 for one in step], axis=1)
    np.testing.assert_allclose(found, slow, atol=1e-6)


def test_what_one_frame_tells_grows_with_its_light_up_to_the_phase_that_no_frame_tells() -> None:
    pytest.importorskip("torch", reason="the extra `train` is not installed")
    from benchmarks.one_frame import autocovariance, estimates, moments

    rng = np.random.default_rng(1)
    obj = rng.uniform(0.8, 1, (40, 40)) * np.exp(1j * rng.uniform(-0.2, 0.2, (40, 40)))
    assert np.diag(autocovariance(np.abs(obj), 6)) == pytest.approx(np.abs(obj).var())
    mean, root = moments(obj, 6)
    patch, noise = obj[10:16, 10:16], rng.standard_normal(256)
    probe = np.exp(1j * rng.uniform(0, 6, (6, 6)))
    dark, bright = (estimates(patch, probe * scale, mean, root, noise)[0] for scale in (1e-3, 1e4))
    agreed = np.vdot(bright, patch)
    assert np.abs(bright * agreed / abs(agreed) - patch).max() < 2e-3
    assert np.abs(dark - mean[0] * np.exp(1j * mean[-1])).max() < 1e-3


@pytest.mark.parametrize("path", ["raster", "spiral"])
def test_the_groups_benchmark_reads_each_chunk_once_within_a_window(path: str, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the extra `train` is not installed")
    from benchmarks.groups import PATHS, costs, further, write

    positions = PATHS[path](8_000)  # 31 chunks, more than a window of the order
    store = write(positions, tmp_path / "s.zarr")
    free, within = (float(costs(store, where)[0]) for where in (None, "window"))
    assert (within, free > 2) == (1.0, True)
    assert 0 < further(positions) < 1


@pytest.mark.long
@pytest.mark.usefixtures("one_thread")
def test_patches_of_a_network_are_held_against_those_of_the_stored_object(tmp_path: Path) -> None:
    from benchmarks.models import KNOWN
    from benchmarks.one_frame import of_network
    from benchmarks.training import trained
    from pipeline.learning.bundle import load_bundle
    from tests.physics_scans import make_scan
    from tests.solved_stores import store_of

    store = store_of(make_scan(noise=True), tmp_path / "s.zarr")
    quick = {**KNOWN, "solver.iterations": 4, "solver.batch_pixels": 51200, "stream.batch_size": 16, "model": "patch"}
    errors = []
    for steps in (1, 150):
        bundle, _ = trained(store, tmp_path / str(steps), {**quick, "fit.steps": steps, "fit.warmup": 1})
        errors.append(of_network(store, load_bundle(bundle)))
    for raw, turned in errors:
        assert 0 < turned <= raw < 1
    assert errors[1][1] < 0.8 * errors[0][1]

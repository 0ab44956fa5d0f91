"""The models `patch` and `cnn` through the commands: the same bytes each time, and an object beside the solver's."""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from pipeline import reconstruct, train  # noqa: E402  # behind the check that torch is there
from pipeline.config import StreamConfig, TrainConfig  # noqa: E402
from pipeline.errors import BundleError  # noqa: E402
from pipeline.evaluation.folder import begin_run, open_run  # noqa: E402
from pipeline.evaluation.network import glance  # noqa: E402
from pipeline.evaluation.run import check_training, run_training  # noqa: E402
from pipeline.learning.bundle import Bundle, load_bundle  # noqa: E402
from pipeline.learning.estimate import estimate  # noqa: E402
from pipeline.learning.grouped import group_task  # noqa: E402
from pipeline.learning.journal import Journal  # noqa: E402
from pipeline.learning.prepare import fit_stream  # noqa: E402
from pipeline.physics.passes import open_scene  # noqa: E402
from pipeline.scan.declaration import Declaration  # noqa: E402
from pipeline.settings import resolve_config  # noqa: E402
from pipeline.stream.scan_stream import Batch, ScanStream  # noqa: E402
from tests.guards import REPOSITORY, run_main  # noqa: E402
from tests.physics_scans import Scan, make_scan  # noqa: E402
from tests.solved_stores import quiet, store_of  # noqa: E402

SOLVE = (
    "--prior", "quadratic", "--set", "prior.weight=0.03", "--refine", "none", "--set", "solver.iterations=4",
    "--set", "solver.batch_pixels=51200", "--quiet",
)  # fmt: skip
QUICK = (*SOLVE, "--steps", "6", "--set", "fit.warmup=1", "--set", "network.width=4")
CASES = [
    pytest.param(("patch", 1), marks=pytest.mark.long, id="patch 1"),
    pytest.param(("patch", 2), id="patch 2"),
    pytest.param(("cnn", 1), id="cnn 1"),
    pytest.param(("cnn", 2), marks=pytest.mark.long, id="cnn 2"),
]
SIZES = {("patch", 1): "16", ("patch", 2): "4", ("cnn", 1): "8", ("cnn", 2): "4"}


@functools.cache
def scan() -> Scan:
    return make_scan(noise=True, n_frames=120)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store_of(scan(), tmp_path_factory.mktemp("groups") / "good.zarr")


def options_of(model: str, gridsize: int) -> tuple[str, ...]:
    return "--model", model, "--gridsize", str(gridsize), "--batch-size", SIZES[model, gridsize], *QUICK


def data_of(done: subprocess.CompletedProcess[str]) -> dict:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["data"]


@pytest.fixture(scope="module", params=CASES)
def trained(request: pytest.FixtureRequest, store: Path, tmp_path_factory: pytest.TempPathFactory):
    """Model, gridsize and the folder of a whole run."""
    output = tmp_path_factory.mktemp("trained") / "run"
    data_of(run_main(train.main, store, "--output", output, *options_of(*request.param), "--json"))
    return *request.param, output


def test_training_gives_the_same_bytes_with_workers_and_after_a_stop(trained, store: Path, tmp_path: Path) -> None:
    model, gridsize, output = trained
    whole = (output / "wts.h5.zip").read_bytes()
    again = tmp_path / "again"
    command = [sys.executable, "-m", "pipeline.train", str(store), "--output", str(again)]
    with subprocess.Popen([*command, *options_of(model, gridsize), "--num-workers", "2"], cwd=REPOSITORY) as running:
        deadline = time.monotonic() + 60
        while not any('"fit"' in path.read_text() for path in again.glob("metrics.jsonl")):
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
    assert running.returncode == -signal.SIGKILL
    assert not (again / "wts.h5.zip").exists()
    data_of(run_main(train.main, "--resume", again, "--json", "--quiet"))
    assert (again / "wts.h5.zip").read_bytes() == whole
    report = json.loads((output / "report.json").read_text())
    assert (report["fit"]["model"], report["fit"]["gridsize"], report["fit"]["steps"]) == (model, gridsize, 6)


@pytest.mark.parametrize(("model", "gridsize"), list(SIZES), ids=str)
def test_a_fit_goes_on_from_the_step_that_it_was_stopped_at(
    model: str, gridsize: int, store: Path, tmp_path: Path
) -> None:
    config = resolve_config(
        TrainConfig,
        settings={
            "model": model, "stream.gridsize": gridsize, "stream.batch_size": int(SIZES[model, gridsize]),
            "prior.name": "quadratic", "prior.weight": 0.03, "solver.iterations": 2, "fit.steps": 5,
            "fit.warmup": 1, "network.width": 4,
        },
    )  # fmt: skip
    begun = [
        begin_run(
            store, tmp_path / name, config, kind="train", said=Declaration(), catalog=None, command=[],
            check=lambda record: check_training(record, config),
        )
        for name in ("whole", "stopped")
    ]  # fmt: skip
    whole = run_training(begun[0], tell=quiet)
    with pytest.raises(KeyboardInterrupt):
        run_training(begun[1], tell=stopped_in_fit(2))
    assert (tmp_path / "stopped" / "checkpoints" / "fit.safetensors").exists()
    done = run_training(open_run(tmp_path / "stopped", kind="train"), tell=quiet)
    assert done["bundle_sha256"] == whole["bundle_sha256"]
    told = [json.loads(line) for line in (tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines()]
    assert [one["done"] for one in told if one["phase"] == "fit"] == [1, 2, 3, 4, 5]


def stopped_in_fit(steps: int) -> Callable[[str, int], Callable[[int], None]]:
    """Progress that behaves like Ctrl-C after so many steps of the network and one more."""

    def tell(name: str, total: int) -> Callable[[int], None]:
        calls = [0]

        def advance(done: int) -> None:
            calls[0] += name == "fit"
            if calls[0] > steps + 1:  # the first call tells what was done before
                raise KeyboardInterrupt

        return advance

    return tell


def test_a_reconstruction_keeps_the_solver_beside_the_object_of_patches(trained, store: Path, tmp_path: Path) -> None:
    _, _, output = trained
    bundle = output / "wts.h5.zip"
    found = data_of(
        run_main(reconstruct.main, store, "--output", tmp_path / "r", "--bundle", bundle, *SOLVE, "--json")
    )  # fmt: skip
    alone = data_of(run_main(reconstruct.main, store, "--output", tmp_path / "alone", *SOLVE, "--json"))
    assert found["nll_solver"] == alone["nll_solver"]
    assert np.isfinite(found["nll_network"])
    with xr.open_zarr(tmp_path / "r" / "reconstruction.zarr") as made:
        with xr.open_zarr(tmp_path / "alone" / "reconstruction.zarr") as solver:
            assert np.array_equal(made.object_solver.values, solver.object.values)
        assert np.isfinite(made.object.values).all()
        assert not np.array_equal(made.object.values, made.object_solver.values)
        assert made.attrs["bundle_sha256"] == load_bundle(bundle).sha256


def test_a_glance_is_the_object_of_patches_without_a_solve(trained, store: Path, tmp_path: Path) -> None:
    """The same but for the gauge, which the reconstruction takes from the scan, and float32 sums."""
    path = trained[-1] / "wts.h5.zip"
    bundle = load_bundle(path)
    data_of(run_main(reconstruct.main, store, "--output", tmp_path / "r", "--bundle", path, *SOLVE, "--json"))
    with xr.open_zarr(tmp_path / "r" / "reconstruction.zarr") as made:
        known, origin = made.object.values, tuple(made.attrs["origin_px"])
    seen = glance(bundle, store)
    assert (seen.object.shape, seen.origin_px) == (known.shape, origin)
    assert seen.object == pytest.approx(known, abs=1e-3)


def test_phases_are_aligned_where_asked_for_and_it_is_told(trained, store: Path, tmp_path: Path) -> None:
    _, _, output = trained
    options = ("--bundle", output / "wts.h5.zip", *SOLVE, "--json")
    data_of(run_main(reconstruct.main, store, "--output", tmp_path / "a", "--align-phases", "20", *options))
    data_of(run_main(reconstruct.main, store, "--output", tmp_path / "b", *options))
    told = [json.loads((tmp_path / name / "report.json").read_text()) for name in "ab"]
    assert told[0]["phases_turned_rad"] > 0
    assert (told[0]["align_phases"], told[1]["align_phases"], told[1]["phases_turned_rad"]) == (20, 0, None)
    objects = [xr.open_zarr(tmp_path / name / "reconstruction.zarr").object.values for name in "ab"]
    assert not np.array_equal(*objects)


def batch_of(store: Path, gridsize: int) -> Batch:
    config = StreamConfig(batch_size=5, batches="sequential", gridsize=gridsize, neighbors=max(7, gridsize**2))
    return next(iter(ScanStream(store, config)))


def test_bad_pixels_say_nothing_to_a_bundle(trained, store: Path, tmp_path: Path) -> None:
    """Counts of 60,000 on pixels that the store calls bad change neither patches nor predicted frames."""
    _, gridsize, output = trained
    valid = np.ones((32, 32), bool)
    valid[[3, 16, 20], [5, 14, 20]] = False
    made = scan()
    loud, silent = made.intensity.copy(), made.intensity.copy()
    loud[:, ~valid], silent[:, ~valid] = 60_000, 0
    found = []
    for name, intensity in (("loud", loud), ("silent", silent)):
        path = store_of(
            replace(made, intensity=intensity), tmp_path / f"{name}.zarr",
            valid=(("detector_y", "detector_x"), valid),
        )  # fmt: skip
        batch = batch_of(path, gridsize)
        assert np.array_equal(batch.valid.numpy(), valid)
        bundle = load_bundle(output / "wts.h5.zip")
        found.append((bundle.diffraction_to_obj(batch), bundle.autoencoder(batch)))
    assert all(np.array_equal(one, other) for one, other in zip(*found, strict=True))
    assert batch_of(store, gridsize).valid is None


def test_a_bundle_makes_patches_and_frames_of_a_batch(trained, store: Path) -> None:
    model, gridsize, output = trained
    bundle, batch = load_bundle(output / "wts.h5.zip"), batch_of(store, gridsize)
    patches, frames = bundle.diffraction_to_obj(batch), bundle.autoencoder(batch)
    assert patches.shape[:2] == (5, gridsize**2)
    assert patches.dtype == np.complex64
    assert frames.shape == tuple(batch.diffraction.shape)
    light = [float((amplitude**2).sum()) for amplitude in (frames, batch.diffraction.numpy())]
    assert light[0] == pytest.approx(light[1], rel=0.5 if model == "cnn" else 0.1)
    with pytest.raises(BundleError, match=f"groups of 9 frames, .* trained on groups of {gridsize**2}"):
        bundle.diffraction_to_obj(batch_of(store, 3))
    with pytest.raises(BundleError, match="photons_per_frame = 7"):
        bundle.diffraction_to_obj(batch, photons_per_frame=7)
    brighter = batch._replace(probe=batch.probe * 10)
    assert bundle.diffraction_to_obj(brighter) == pytest.approx(patches / 10, rel=1e-3, abs=1e-5)
    with pytest.raises(BundleError, match="takes a Batch"):
        bundle.diffraction_to_obj(store)


def test_defaults_follow_the_model_and_steps_replace_epochs() -> None:
    patch = resolve_config(TrainConfig, settings={"model": "patch", "stream.gridsize": 2})
    assert (patch.stream.batch_size, patch.stream.batches, patch.fit.steps) == (8, "cluster", 2050)
    cnn = resolve_config(TrainConfig, settings={"model": "cnn"})
    assert (cnn.stream.batch_size, cnn.stream.batches, cnn.fit.epochs, cnn.refine.what) == (16, "shuffled", 50, "none")
    assert resolve_config(TrainConfig, settings={"model": "cnn", "fit.steps": 7}).fit.epochs is None
    assert resolve_config(TrainConfig, settings={}) == TrainConfig()


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--model", "patch", "--gridsize", "2", "--neighbors", "3"), 2, "OVERSAMPLING-001"),
        (("--model", "cnn", "--gridsize", "2", "--neighbors", "3"), 2, "OVERSAMPLING-001"),
        (("--model", "cnn", "--gridsize", "3"), 2, "--neighbors 9"),
        (("--model", "patch", "--supervised"), 4, "no `label`"),
        (("--model", "cnn", "--supervised"), 4, "no `label`"),
        (("--model", "patch", "--batches", "shuffled"), 2, "--batches cluster"),
        (("--model", "patch", "--batch-size", "1"), 2, "clusters of one group"),
        (("--model", "patch", "--cluster-size", "1"), 2, "clusters of one group"),
        (("--model", "cnn", "--set", "stream.batches=sequential"), 2, "random order"),
        (("--model", "cnn", "--cluster-size", "4"), 2, "not made of clusters"),
        (("--model", "cnn", "--set", "patch.damping=0.2"), 2, "the model is cnn"),
        (("--model", "cnn", "--set", "network.depth=3"), 2, "decides how deep"),
        (("--model", "patch", "--set", "stream.neighbors_within=window"), 2, "works on single frames"),
        (("--model", "cnn", "--set", "stream.seed=3"), 2, "the order follows from seed"),
        (("--model", "patch", "--supervised", "--set", "patch.earlier_weight=0.1"), 2, "labels judge"),
        (("--model", "cnn", "--steps", "5", "--epochs", "2"), 2, "--steps and --epochs"),
        (("--model", "patch", "--set", "network.depth=9"), 2, "out of range"),
        (("--model", "canvas", "--gridsize", "2"), 2, "gridsize"),
    ],
)
def test_what_no_model_can_learn_from_is_refused_before_the_folder_appears(
    options: tuple[str, ...], code: int, said: str, store: Path, tmp_path: Path
) -> None:
    done = run_main(train.main, store, "--output", tmp_path / "run", *options, "--quiet")
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert not list(tmp_path.iterdir())


def test_a_side_that_the_autoencoder_cannot_take_is_refused(tmp_path: Path) -> None:
    odd = store_of(make_scan(noise=True, n_frames=30, n=48), tmp_path / "s.zarr")
    done = run_main(train.main, odd, "--output", tmp_path / "run", "--model", "cnn", "--quiet")
    assert (done.returncode, "48 x 48" in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "run").exists()


def test_groups_too_wide_to_be_stitched_are_refused_before_the_folder_appears(tmp_path: Path) -> None:
    made = scan()
    wide = store_of(replace(made, positions=made.positions * 24), tmp_path / "s.zarr", object=None)
    for options in (("--model", "patch"), ("--model", "cnn", "--gridsize", "2")):
        done = run_main(train.main, wide, "--output", tmp_path / "run", *options, "--batch-size", "120", *SOLVE)
        assert (done.returncode, "would fill the memory" in done.stderr) == (2, True), done.stderr
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--n-groups", "10"),
        ("--n-subsample", "12"),
        ("--gridsize", "2", "--n-groups", "10"),
        ("--gridsize", "2", "--n-groups", "10", "--neighbors-within", "window"),
    ],
    ids=" ".join,
)
def test_fewer_groups_than_a_batch_are_all_in_one_and_it_is_said(
    options: tuple[str, ...], store: Path, tmp_path: Path
) -> None:
    quick = ("--model", "patch", "--batch-size", "16", *QUICK, "--steps", "2", *options)
    data_of(run_main(train.main, store, "--output", tmp_path / "run", *quick, "--json"))
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    n = 12 if "12" in options else 10
    assert report["fit"]["batch_size"] == n
    assert any(f"batches of 16 asked for, there are {n} groups" in said for said in report["warnings"])


def test_phases_are_aligned_only_between_patches(store: Path, tmp_path: Path) -> None:
    done = run_main(reconstruct.main, store, "--output", tmp_path / "run", "--align-phases", "5", "--quiet")
    assert (done.returncode, "no bundle is given" in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize(("model", "gridsize"), [("patch", 1), ("cnn", 2)])
def test_labels_teach_the_object_itself(model: str, gridsize: int, tmp_path: Path) -> None:
    made = scan()
    n = made.probe.shape[-1]
    corners = np.rint(made.positions).astype(int) - n // 2
    labels = np.stack([made.truth[y : y + n, x : x + n] for y, x in np.clip(corners, 0, len(made.truth) - n)])
    labelled = store_of(made, tmp_path / "s.zarr", label=(("frame", "probe_y", "probe_x"), labels))
    losses = []
    for steps in ("1", "60"):
        output = tmp_path / steps
        options = (*options_of(model, gridsize), "--supervised", "--steps", steps, "--json")
        data_of(run_main(train.main, labelled, "--output", output, *options))
        losses.append(json.loads((output / "report.json").read_text())["fit"]["loss_last"])
    assert losses[1] < 0.8 * losses[0]


def test_a_group_model_improves_no_solve(trained) -> None:
    _, _, output = trained
    bundle: Bundle = load_bundle(output / "wts.h5.zip")
    with pytest.raises(BundleError, match="improves no solve"):
        bundle._canvas_network(32, "bundle")


@pytest.mark.parametrize("model", ["patch", "cnn"])
def test_positions_and_gains_that_were_refined_are_those_that_the_network_is_trained_with(
    model: str, store: Path, tmp_path: Path
) -> None:
    config = resolve_config(
        TrainConfig,
        settings={"model": model, "stream.gridsize": 2, "prior.name": "quadratic", "prior.weight": 0.03,
                  "solver.iterations": 1, "network.width": 4},
    )  # fmt: skip
    scene = open_scene(store)
    journal = Journal(tmp_path / "states", identity={}, tell=lambda name, passes: lambda done: None)
    found = estimate(scene, config.solving, journal)
    shift = torch.from_numpy(np.random.default_rng(1).normal(0, 2, (scene.n_frames, 2)))
    stream, _ = fit_stream(store, config)
    batch = next(iter(stream))
    gain = torch.from_numpy(np.random.default_rng(2).uniform(0.5, 1.5, scene.n_frames))
    mean_light = batch.diffraction / gain[batch.indices].sqrt().float()[:, :, None, None]
    moved = batch._replace(positions=batch.positions + shift[batch.indices])
    size = stream.order.cluster_size

    def loss(seen: Batch, **known: torch.Tensor) -> float:
        task = group_task(scene, replace(found, **{"shift": None, "gain": None, **known}), config, cluster_size=size)
        return float(task.loss(seen, 0).detach())

    assert loss(batch, shift=shift) == loss(moved) != loss(batch)
    assert loss(batch, gain=gain) == loss(batch._replace(diffraction=mean_light)) != loss(batch)

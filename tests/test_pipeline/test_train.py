"""`python -m pipeline.train`: from photons to a bundle that proves itself, the same bytes each time."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import xarray as xr

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from catalogs.index import list_entries  # noqa: E402  # behind the check that torch is there
from catalogs.run_page import page_data  # noqa: E402
from pipeline import reconstruct, train  # noqa: E402
from pipeline.config import TrainConfig  # noqa: E402
from pipeline.evaluation.folder import begin_run  # noqa: E402
from pipeline.evaluation.run import run_training  # noqa: E402
from pipeline.learning.bundle import load_bundle  # noqa: E402
from pipeline.scan.declaration import Declaration  # noqa: E402
from pipeline.scan.record import open_record  # noqa: E402
from pipeline.settings import parse_setting, resolve_config  # noqa: E402
from tests.guards import REPOSITORY, run_main  # noqa: E402
from tests.physics_scans import Scan, make_scan  # noqa: E402
from tests.solved_stores import store_of  # noqa: E402

QUICK = (
    "--set", "solver.iterations=6", "--set", "prior.choice_iterations=4", "--set", "solver.start_iterations=3",
    "--set", "solver.batch_pixels=51200", "--batch-size", "40", "--steps", "12", "--set", "fit.warmup=2",
    "--set", "network.width=4", "--quiet",
)  # fmt: skip


@functools.cache
def scan() -> Scan:
    return make_scan(noise=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store_of(scan(), tmp_path_factory.mktemp("train") / "good.zarr")


def data_of(done: subprocess.CompletedProcess[str]) -> dict:
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["ok"]
    return told["data"]


@pytest.fixture(scope="module")
def trained(store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A whole run and what it printed."""
    output = tmp_path_factory.mktemp("trained") / "run"
    return output, data_of(run_main(train.main, store, "--output", output, *QUICK, "--json"))


# --- what is left


def test_a_training_is_a_folder_with_bundle_report_and_metrics(trained: tuple[Path, dict], store: Path) -> None:
    output, told = trained
    assert sorted(p.name for p in output.iterdir()) == [
        "loss.png", "metrics.jsonl", "network.png", "report.html", "report.json", "report.png", "run.json",
        "run.toml", "wts.h5.zip",
    ]  # fmt: skip
    report = json.loads((output / "report.json").read_text())
    sha256 = hashlib.sha256((output / "wts.h5.zip").read_bytes()).hexdigest()
    assert told["bundle_sha256"] == report["bundle_sha256"] == load_bundle(output / "wts.h5.zip").sha256 == sha256
    assert told["store_sha256"] == open_record(store).store_sha256
    assert told["bundle_path"] == str(output / "wts.h5.zip")
    assert report["fit"]["steps"] == 12
    assert {"evidence", "halves 1", "halves 2", "fit"} <= {phase["name"] for phase in report["phases"]}


def test_a_training_says_why_it_refined_or_not_and_what_the_solver_reached(trained: tuple[Path, dict]) -> None:
    output, told = trained
    report = json.loads((output / "report.json").read_text())
    done = run_main(train.main, "--resume", output)  # whole already: told again
    assert f"trained, prior {report['prior']['name']} {report['prior']['lam']:g}, probe as stored\n" in done.stdout
    assert f"  not refined: {report['refine']['reason']}\n" in done.stdout
    assert f"held-out frames {report['nll_held_out']:.4f} a pixel" in done.stdout
    assert (told["refine"], told["refine_reason"]) == ("none", report["refine"]["reason"])


def test_a_training_is_listed_with_its_losses_and_its_bundle(trained: tuple[Path, dict], store: Path) -> None:
    output, told = trained
    (row,) = list_entries([output])
    assert (row.kind, row.verdict, row.problem, row.quantity) == ("training", "finished", None, "canvas, 12 steps")
    assert (row.bundle_sha256, row.made_from) == (told["bundle_sha256"], told["store_sha256"])
    assert row.nll_solver == json.loads((output / "report.json").read_text())["nll_held_out"]
    assert page_data(output)["command"].startswith(f"python -m pipeline.train {store} ")


def test_metrics_count_every_pass_and_step(trained: tuple[Path, dict]) -> None:
    lines = [json.loads(line) for line in (trained[0] / "metrics.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(len(lines)))
    fitted = [line for line in lines if line["phase"] == "fit"]
    assert [line["done"] for line in fitted] == list(range(1, 13))
    assert all(line["loss"] > 0 for line in fitted)


def test_a_bundle_names_its_source_and_holds_no_place_or_time(trained: tuple[Path, dict], store: Path) -> None:
    bundle = load_bundle(trained[0] / "wts.h5.zip")
    assert bundle.model == "canvas"
    assert bundle.lineage["store_sha256"] == open_record(store).store_sha256
    text = json.dumps([bundle.config, bundle.lineage])
    assert str(store.parent) not in text
    assert "num_workers" not in text.replace('"num_workers": 0', "")


# --- the same bytes


def started(source: Path, output: Path, *more: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "pipeline.train", source, "--output", output, *QUICK, *more]
    return subprocess.Popen(
        list(map(str, words)), cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_another_run_with_workers_gives_the_same_bundle(
    trained: tuple[Path, dict], store: Path, tmp_path: Path
) -> None:
    run = started(store, tmp_path / "other", "--num-workers", "2")
    _, told = run.communicate(timeout=110)
    assert run.returncode == 0, told
    assert (tmp_path / "other" / "wts.h5.zip").read_bytes() == (trained[0] / "wts.h5.zip").read_bytes()


def resumed(output: Path) -> bytes:
    data_of(run_main(train.main, "--resume", output, "--json", "--quiet"))
    return (output / "wts.h5.zip").read_bytes()


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10))
def test_a_training_killed_at_a_random_instant_goes_on_to_the_same_bundle(
    trained: tuple[Path, dict], store: Path, tmp_path: Path, seed: int
) -> None:
    output, chance = tmp_path / "run", random.Random(seed)
    run = started(store, output)
    while not output.exists():
        assert run.poll() is None, run.communicate()
        time.sleep(0.01)
    time.sleep(chance.uniform(0, 6))
    run.kill()
    run.communicate()
    assert resumed(output) == (trained[0] / "wts.h5.zip").read_bytes()
    lines = (output / "metrics.jsonl").read_text().splitlines()
    assert lines == (trained[0] / "metrics.jsonl").read_text().splitlines()


@pytest.mark.parametrize("steps", [3, 9])
def test_a_stopped_training_repeats_no_step(steps: int, store: Path, tmp_path: Path) -> None:
    sets = dict(map(parse_setting, QUICK[1:8:2]))
    config = resolve_config(
        TrainConfig, settings={**sets, "stream.batch_size": 40, "fit.steps": 12, "network.width": 4,
                               "prior.name": "quadratic", "prior.weight": 0.03, "refine.what": "none"},
    )  # fmt: skip
    run = begin_run(
        store, tmp_path / "run", config, kind="train", said=Declaration(), catalog=None, command=[],
        check=lambda record: None,
    )  # fmt: skip
    counted: list[str] = []

    def counting(name: str, passes: int, *, stop: int = 99):
        calls: list[int] = []

        def advance(done: int) -> None:
            calls.append(done)
            if len(calls) > 1:  # the first call tells what was done before
                counted.append(name)
            if name == "fit" and len(calls) > stop:
                raise KeyboardInterrupt

        return advance

    with pytest.raises(KeyboardInterrupt):
        run_training(run, tell=functools.partial(counting, stop=steps))
    before = len(counted)
    run_training(run, tell=counting)
    assert counted.count("fit") == 12
    assert set(counted[before:]) == {"fit"}


@pytest.mark.long
def test_a_signal_in_the_middle_of_fitting_keeps_the_state(store: Path, tmp_path: Path) -> None:
    data_of(run_main(train.main, store, "--output", tmp_path / "whole", *QUICK, "--steps", "150", "--json"))
    output = tmp_path / "run"
    run = started(store, output, "--steps", "150")
    metrics = output / "metrics.jsonl"
    while not (metrics.exists() and '"fit"' in metrics.read_text()):
        assert run.poll() is None, run.communicate()
        time.sleep(0.002)
    run.send_signal(signal.SIGTERM)
    _, told = run.communicate(timeout=60)
    assert run.returncode == 143, told
    assert f"python -m pipeline.train --resume {output}" in told
    assert resumed(output) == (tmp_path / "whole" / "wts.h5.zip").read_bytes()
    assert metrics.read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()


# --- used on a scan


def test_a_bundle_improves_a_scan_beside_the_solver(trained: tuple[Path, dict], store: Path, tmp_path: Path) -> None:
    options = ("--set", "solver.iterations=6", "--set", "prior.choice_iterations=4", "--set",
               "solver.start_iterations=3", "--set", "solver.batch_pixels=51200", "--quiet", "--json")  # fmt: skip
    alone = data_of(run_main(reconstruct.main, store, "--output", tmp_path / "alone", *options))
    told = data_of(
        run_main(
            reconstruct.main, store, "--bundle", trained[1]["bundle_path"], "--output", tmp_path / "both", *options
        )
    )
    assert told["bundle_sha256"] == trained[1]["bundle_sha256"]
    assert told["nll_network"] is not None
    (row,) = list_entries([tmp_path / "both"])
    assert (row.nll_solver, row.nll_network) == (told["nll_solver"], told["nll_network"])
    assert (row.bundle_sha256, row.store_sha256) == (told["bundle_sha256"], told["reconstruction_sha256"])
    assert {name: told[name] for name in ("prior", "lam", "nll_solver", "nll_floor")} == {
        name: alone[name] for name in ("prior", "lam", "nll_solver", "nll_floor")
    }
    both, single = (xr.open_zarr(tmp_path / name / "reconstruction.zarr") for name in ("both", "alone"))
    assert (both.object_solver.values == single.object.values).all()
    assert (both.object.values != single.object.values).any()


def test_a_network_that_is_worse_is_said_to_be(trained: tuple[Path, dict], store: Path, tmp_path: Path) -> None:
    from pipeline.learning.bundle import save_bundle

    bundle = load_bundle(trained[0] / "wts.h5.zip")
    weights = {name: weight + (3.0 if name == "last.bias" else 0.0) for name, weight in bundle.weights.items()}
    bad = tmp_path / "bad.zip"
    save_bundle(bad, model="canvas", config=bundle.config, weights=weights, probe=bundle.probe, lineage=bundle.lineage)
    done = run_main(
        reconstruct.main, store, "--bundle", bad, "--output", tmp_path / "run", "--set", "solver.iterations=6", "--json"
    )
    assert done.returncode == 0
    told = json.loads(done.stdout)
    assert told["data"]["nll_network"] > told["data"]["nll_solver"]
    assert any("worse than the solver alone" in warning for warning in told["warnings"])


# --- refusals


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--gridsize", "2"), 2, "--gridsize: the model canvas works on single frames"),
        (("--steps", "-1"), 2, "--steps: fit.steps = -1 is out of range"),
        (("--set", "fit.warmup=-1"), 2, "--set fit.warmup: fit.warmup = -1 is out of range"),
        (("--set", "fit.step=3"), 2, "did you mean fit.steps?"),
        (("--batch-size", "40", "--cluster-size", "7"), 2, "whole clusters"),
        (("--modes", "2", "--refine", "none"), 2, "--refine probe"),
        (("--model", "unet"), 2, "unet"),
        (("--supervised",), 2, "learns from photons alone"),
        (("--neighbors", "9"), 2, "works on single frames"),
        (("--neighbors", "7"), 2, "gridsize is 1"),
        (("--allow-oversampling",), 2, "works on single frames"),
        (("--n-subsample", "50"), 2, "solves with every frame"),
        (("--set", "stream.n_subsample=50"), 2, "solves with every frame"),
    ],
)
def test_a_training_that_cannot_be_is_refused_before_any_work(
    store: Path, tmp_path: Path, options: tuple[str, ...], code: int, said: str
) -> None:
    done = run_main(train.main, store, "--output", tmp_path / "run", *options, "--quiet")
    assert done.returncode == code
    assert said in done.stderr
    assert not (tmp_path / "run").exists()


def test_operations_that_cannot_promise_their_bits_may_be_allowed(store: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    data_of(run_main(train.main, store, "--output", output, *QUICK, "--steps", "1", "--no-deterministic", "--json"))
    assert not torch.are_deterministic_algorithms_enabled()
    assert "deterministic = false" in (output / "run.toml").read_text()
    assert "--no-deterministic" in json.loads((output / "run.json").read_text())["command"]
    data_of(run_main(train.main, store, "--output", tmp_path / "two", *QUICK, "--steps", "1", "--json"))
    assert torch.are_deterministic_algorithms_enabled()
    assert "deterministic = true" in (tmp_path / "two" / "run.toml").read_text()


def test_fewer_groups_are_the_frames_that_batches_are_made_of(store: Path) -> None:
    from pipeline.config import TrainConfig
    from pipeline.learning.prepare import fit_stream
    from pipeline.settings import resolve_config

    config = resolve_config(TrainConfig, settings={"stream.n_groups": 60, "stream.batch_size": 20, "fit.steps": 30})
    stream, _ = fit_stream(store, config)
    assert stream.members.shape == (60, 1)
    assert set(stream.plan(0).frames) <= set(range(60))
    assert len(set(stream.members[:, 0])) == 60


def test_a_store_without_probe_is_refused(tmp_path: Path) -> None:
    from pipeline.scan.store import write_scan
    from tests.builders import make_scan as plain_scan

    write_scan(plain_scan(20).drop_vars("probe"), tmp_path / "s.zarr")
    done = run_main(train.main, tmp_path / "s.zarr", "--output", tmp_path / "run")
    assert (done.returncode, "no probe" in done.stderr) == (4, True)
    assert not (tmp_path / "run").exists()


def test_a_changed_bundle_is_refused_before_any_work(trained: tuple[Path, dict], store: Path, tmp_path: Path) -> None:
    changed = tmp_path / "wts.h5.zip"
    data = bytearray((trained[0] / "wts.h5.zip").read_bytes())
    data[len(data) // 2] ^= 1
    changed.write_bytes(data)
    done = run_main(reconstruct.main, store, "--bundle", changed, "--output", tmp_path / "run")
    assert (done.returncode, "wts.h5" in done.stderr) == (6, True)
    assert not (tmp_path / "run").exists()


def test_another_store_on_resume_is_refused(trained: tuple[Path, dict], tmp_path: Path) -> None:
    import shutil

    shutil.copytree(trained[0], tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    other = store_of(make_scan(noise=True, n_frames=50), tmp_path / "other.zarr")
    (tmp_path / "run" / "run.json").write_text(json.dumps({**facts, "store": str(other)}))
    done = run_main(train.main, "--resume", tmp_path / "run")
    assert (done.returncode, "begun with" in done.stderr) == (6, True)

"""`python -m pipeline.reconstruct`: a whole folder or none, the same bytes each time, stopped anywhere or not."""

from __future__ import annotations

import functools
import json
import os
import random
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

from pipeline.reconstruct import main  # noqa: E402  # behind the check that torch is there
from pipeline.scan.record import open_record  # noqa: E402
from tests.builders import tree_bytes  # noqa: E402
from tests.guards import REPOSITORY, run_main  # noqa: E402
from tests.physics_scans import Scan, make_scan, nrmse  # noqa: E402
from tests.solved_stores import store_of  # noqa: E402

QUICK = (
    "--iterations", "6", "--set", "solver.start_iterations=3", "--set", "solver.batch_pixels=51200", "--quiet",
)  # fmt: skip
FIXED = ("--prior", "quadratic", "--set", "prior.weight=0.03", "--refine", "none", *QUICK)


@functools.cache
def scan() -> Scan:
    return make_scan(noise=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan whose probe explains its frames."""
    return store_of(scan(), tmp_path_factory.mktemp("reconstruct") / "good.zarr")


@pytest.fixture(scope="module")
def hard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan whose probe does not."""
    wrong = scan().probe * np.exp(0.4j * np.hypot(*np.mgrid[-16:16, -16:16])).astype(np.complex64)
    return store_of(scan(), tmp_path_factory.mktemp("reconstruct") / "hard.zarr", probe=wrong.astype(np.complex64))


def data_of(done: subprocess.CompletedProcess[str]) -> dict:
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["ok"], told["schema"]) == (True, "ptychozarr.reconstruct/1")
    return told["data"]


# --- what is left


def test_a_reconstruction_is_a_folder_with_object_report_and_picture(store: Path, tmp_path: Path) -> None:
    told = data_of(run_main(main, store, "--output", tmp_path / "run", "--iterations", "20", "--json", "--quiet"))
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "reconstruction.zarr", "report.html", "report.json", "report.png", "run.json", "run.toml",
    ]  # fmt: skip
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    record = open_record(tmp_path / "run" / "reconstruction.zarr")
    assert told == {
        "output": str(tmp_path / "run"),
        "prior": report["prior"]["name"],
        "lam": report["prior"]["lam"],
        "refine": "none",
        "modes": 1,
        "refine_reason": report["refine"]["reason"],
        "loss": "poisson",
        "nll_floor": report["nll_floor"],
        "nll_solver": report["nll_held_out"],
        "nll_network": None,
        "store_sha256": open_record(store).store_sha256,
        "bundle_sha256": None,
        "reconstruction_sha256": record.store_sha256,
    }
    assert record.attrs["warnings"] == []
    assert told["nll_solver"] == min(trial["nll"] for trial in report["choice"])
    assert 0 <= report["data_wait_fraction"] < 1
    assert report["metrics"]["role"] == "truth"
    assert report["metrics"]["object"]["complex_nrmse"] < 0.5 * report["metrics"]["flat"]["complex_nrmse"]
    assert report["r_factor"] == pytest.approx(report["r_factor_floor"], rel=0.1)


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        ("store", (), "  not refined: held-out NLL "),
        ("store", ("--refine", "none"), "  not refined: that was not asked for\n"),
        ("hard", ("--set", "refine.start_passes=1", "--modes", "2"), "  refined: held-out NLL "),
    ],
)
def test_the_result_and_the_report_say_why_it_was_refined_or_not(
    request: pytest.FixtureRequest, tmp_path: Path, source: str, options: tuple[str, ...], said: str
) -> None:
    done = run_main(main, request.getfixturevalue(source), "--output", tmp_path / "run", *QUICK, *options)
    assert said in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(said.rstrip())]
    reason = line.partition(": ")[2]
    refine = json.loads((tmp_path / "run" / "report.json").read_text())["refine"]
    assert reason == refine["reason"]
    if refine["evidence"] is not None:
        assert f"{refine['evidence']['nll']:.4g} a pixel with the stored probe" in reason
        assert f"photon noise alone {refine['evidence']['floor']:.4g}" in reason
    assert (tmp_path / "run" / "report.html").read_text().count(f": {reason}.") == 2  # in the lead, under Refinement


def test_plain_xarray_opens_the_object_on_the_grid_of_the_scan(store: Path, tmp_path: Path) -> None:
    data_of(run_main(main, store, "--output", tmp_path / "run", *FIXED, "--iterations", "60", "--json"))
    found = xr.open_zarr(tmp_path / "run" / "reconstruction.zarr")
    y, x = found.attrs["origin_px"]
    truth = np.full(found.object.shape, 1 + 0j, np.complex64)
    height, width = scan().truth.shape
    truth[-y : height - y, -x : width - x] = scan().truth[: truth.shape[0] + y, : truth.shape[1] + x]
    assert nrmse(found.object.values, truth, margin=22) < 0.1
    assert np.array_equal(found.position_y.values, scan().positions[:, 0])
    assert not found.position_shift.values.any()
    assert np.isfinite(found.frame_loss.values).all()
    assert float(found.coverage.max()) == 1


def test_frames_that_the_store_calls_invalid_are_left_out(tmp_path: Path) -> None:
    bad = np.zeros(len(scan().positions), dtype=bool)
    bad[[3, 77]] = True
    spoiled = Scan(truth=scan().truth, probe=scan().probe, positions=scan().positions,
                   intensity=np.where(bad[:, None, None], 60000.0, scan().intensity))  # fmt: skip
    store = store_of(spoiled, tmp_path / "s.zarr", frame_valid=(("frame",), ~bad))
    data_of(run_main(main, store, "--output", tmp_path / "run", *FIXED, "--json"))
    found = xr.open_zarr(tmp_path / "run" / "reconstruction.zarr")
    assert np.array_equal(np.isnan(found.frame_loss.values), bad)
    assert json.loads((tmp_path / "run" / "report.json").read_text())["frames_invalid"] == 2


def test_bad_pixels_are_left_out(tmp_path: Path) -> None:
    valid = np.ones((32, 32), dtype=bool)
    valid[5, 7:12] = False
    stores = [
        store_of(
            Scan(truth=scan().truth, probe=scan().probe, positions=scan().positions,
                 intensity=np.where(valid, scan().intensity, filling)),
            tmp_path / f"{filling}.zarr", valid=(("detector_y", "detector_x"), valid),
        )
        for filling in (0.0, 5000.0)
    ]  # fmt: skip
    objects = []
    for store in stores:
        data_of(run_main(main, store, "--output", tmp_path / f"run-{store.stem}", *FIXED, "--json"))
        objects.append(tree_bytes(tmp_path / f"run-{store.stem}" / "reconstruction.zarr" / "object"))
    assert objects[0] == objects[1]


# --- the same bytes


def arguments(case: str) -> tuple[str, ...]:
    refined = ("--set", "refine.start_passes=1", "--set", "refine.choice_iterations=2", "--modes", "2")
    return (*QUICK, *(refined if case == "hard" else ()))


@pytest.fixture(scope="module", params=["store", "hard"])
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str, dict[str, bytes]]:
    """An uninterrupted run: its source, its case and the bytes of its result."""
    source = request.getfixturevalue(request.param)
    output = tmp_path_factory.mktemp("whole") / "run"
    told = data_of(run_main(main, source, "--output", output, *arguments(request.param), "--json"))
    assert told["refine"] == ("none" if request.param == "store" else "probe,positions")
    return source, request.param, tree_bytes(output / "reconstruction.zarr")


def started(source: Path, output: Path, case: str, *more: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "pipeline.reconstruct", source, "--output", output, *arguments(case), *more]
    return subprocess.Popen(
        list(map(str, words)), cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_another_run_with_workers_gives_the_same_bytes(
    whole: tuple[Path, str, dict[str, bytes]], tmp_path: Path
) -> None:
    source, case, expected = whole
    run = started(source, tmp_path / "run", case, "--num-workers", "2")
    assert run.wait(100) == 0, run.communicate()
    run.communicate()
    assert tree_bytes(tmp_path / "run" / "reconstruction.zarr") == expected


def resumed(output: Path) -> dict[str, bytes]:
    data_of(run_main(main, "--resume", output, "--json", "--quiet"))
    return tree_bytes(output / "reconstruction.zarr")


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5))
def test_a_run_killed_at_a_random_instant_goes_on_to_the_same_bytes(
    whole: tuple[Path, str, dict[str, bytes]], tmp_path: Path, seed: int
) -> None:
    source, case, expected = whole
    output, chance = tmp_path / "run", random.Random(seed)
    run = started(source, output, case)
    while not output.exists():
        assert run.poll() is None, run.communicate()
        time.sleep(0.01)
    time.sleep(chance.uniform(0, 6))
    run.kill()
    run.communicate()
    assert resumed(output) == expected


@pytest.mark.parametrize(
    ("sent", "code"), [pytest.param(signal.SIGTERM, 143, marks=pytest.mark.long), (signal.SIGINT, 130)]
)
def test_a_signal_keeps_the_state_and_says_how_to_go_on(
    store: Path, tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    longer = (*QUICK, "--iterations", "60")
    data_of(run_main(main, store, "--output", tmp_path / "whole", *longer, "--json"))
    output = tmp_path / "run"
    run = started(store, output, "store", "--iterations", "60")
    while not list(output.glob("checkpoints/*choice*")):
        assert run.poll() is None, run.communicate()
        time.sleep(0.002)
    run.send_signal(sent)
    _, told = run.communicate(timeout=60)
    assert run.returncode == code, told
    assert f"python -m pipeline.reconstruct --resume {output}" in told
    assert "Traceback" not in told
    assert not (output / "reconstruction.zarr").exists()
    settings = (output / "run.toml").read_text()
    (output / "run.toml").write_text(settings.replace("iterations = 60", "iterations = 61"))
    done = run_main(main, "--resume", output)
    assert (done.returncode, "a state of another run: configuration differ" in done.stderr) == (6, True), done.stderr
    (output / "run.toml").write_text(settings.replace("num_workers = 0", "num_workers = 1"))
    assert resumed(output) == tree_bytes(tmp_path / "whole" / "reconstruction.zarr")


def test_a_whole_run_is_left_as_it_is(store: Path, tmp_path: Path) -> None:
    first = data_of(run_main(main, store, "--output", tmp_path / "run", *FIXED, "--json"))
    before = tree_bytes(tmp_path / "run")
    assert data_of(run_main(main, "--resume", tmp_path / "run", "--json")) == first
    assert tree_bytes(tmp_path / "run") == before


def test_a_legacy_file_is_converted_into_the_folder_first(tmp_path: Path) -> None:
    npz = tmp_path / "scan.npz"
    np.savez(npz, diffraction=scan().intensity.astype(np.uint16), probeGuess=scan().probe[0],
             xcoords=scan().positions[:, 1], ycoords=scan().positions[:, 0])  # fmt: skip
    told = data_of(run_main(main, npz, "--output", tmp_path / "run", *FIXED, "--json"))
    assert open_record(tmp_path / "run" / "data.zarr").store_sha256 == told["store_sha256"]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (report["source"]["name"], report["metrics"]) == ("scan.npz", None)
    moved = tmp_path / "elsewhere"
    (tmp_path / "run").rename(moved)
    assert data_of(run_main(main, "--resume", moved, "--json"))["store_sha256"] == told["store_sha256"]


# --- refusals: one line, its exit code, nothing left


def refused(*given: str | Path, code: int, said: str, left: Path) -> str:
    done = run_main(main, *given, "--quiet")
    assert done.returncode == code, done.stdout + done.stderr
    assert said in done.stderr
    assert not left.exists()
    assert not [p for p in left.parent.iterdir() if p.name.startswith(f".{left.name}")]
    return done.stderr


def without(store: Path, target: Path, **changed: object) -> Path:
    from pipeline.scan.store import open_stored, write_scan

    ds = open_stored(store).load()
    dropped = [name for name, value in changed.items() if value is None]
    ds = ds.drop_vars(dropped)
    for name, value in changed.items():
        if value is not None:
            ds[name] = (ds[name].dims, value, ds[name].attrs)
    write_scan(ds, target)
    return target


def test_a_store_without_probe_is_refused(store: Path, tmp_path: Path) -> None:
    source = without(store, tmp_path / "s.zarr", probe=None)
    refused(source, "--output", tmp_path / "run", code=4, said="no probe", left=tmp_path / "run")


def test_positions_outside_the_stored_object_are_refused(store: Path, tmp_path: Path) -> None:
    y = scan().positions[:, 0].copy()
    y[7] = 300.5
    source = without(store, tmp_path / "s.zarr", position_y=y)
    said = refused(source, "--output", tmp_path / "run", code=4, said="position of frame 7", left=tmp_path / "run")
    assert "80 x 80" in said
    assert "--position-origin" in said


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--set", "solver.iteration=3"), 2, "did you mean solver.iterations?"),
        (("--iterations", "-1"), 2, "--iterations: solver.iterations = -1 is out of range"),
        (("--iteration", "3"), 2, "No such option"),
        (("--modes", "3", "--refine", "none"), 2, "--refine probe"),
        (("--modes", "9", "--refine", "probe"), 2, "at most 6"),
        (("--threads", "0"), 2, "--threads: threads = 0 is out of range"),
        (("--prior", "flat"), 2, "flat"),
    ],
)
def test_an_option_that_cannot_be_is_refused(
    store: Path, tmp_path: Path, options: tuple[str, ...], code: int, said: str
) -> None:
    refused(store, "--output", tmp_path / "run", *options, code=code, said=said, left=tmp_path / "run")


def test_a_run_never_writes_into_its_source(store: Path) -> None:
    before = tree_bytes(store)
    refused(store, "--output", store / "run", *FIXED, code=2, said="which would change it", left=store / "run")
    assert tree_bytes(store) == before


def cut(rows: slice) -> Scan:
    return replace(scan(), positions=scan().positions[rows], intensity=scan().intensity[rows])


@pytest.mark.parametrize(
    ("source", "changes", "code", "said"),
    [
        (lambda: cut(slice(0, 1)), {}, 2, "of 1 frames one alone lies in the middle"),
        (lambda: cut(slice(0, 1)), {"frame_valid": (("frame",), np.zeros(1, np.bool_))}, 4, "frame_valid is false"),
        (scan, {"valid": (("detector_y", "detector_x"), np.zeros((32, 32), np.bool_))}, 4, "valid is false everywhere"),
        (scan, {"probe": np.zeros((1, 32, 32), np.complex64)}, 4, "the probe is zero everywhere"),
        (scan, {"probe": np.full((1, 32, 32), np.nan + 0j, np.complex64)}, 4, "the probe holds values that are not"),
        (lambda: replace(scan(), intensity=scan().intensity * 0), {}, 4, "the frames hold no photon"),
        (lambda: replace(scan(), intensity=scan().intensity * 0), {"scale": None}, 4, "the frames are zero everywhere"),
        (lambda: replace(scan(), positions=scan().positions * 1500), {"object": None}, 4, "frames that do not overlap"),
    ],
    ids=["one frame", "no frame counts", "no pixel counts", "dark probe", "broken probe", "dark counts",
         "dark amplitudes", "frames far apart"],
)  # fmt: skip
def test_a_scan_that_tells_nothing_is_refused_before_the_folder_appears(
    source: Callable[[], Scan], changes: dict[str, object], code: int, said: str, tmp_path: Path
) -> None:
    store = store_of(source(), tmp_path / "s.zarr", **changes)
    refused(store, "--output", tmp_path / "run", *QUICK, code=code, said=said, left=tmp_path / "run")


def test_five_frames_are_enough(tmp_path: Path) -> None:
    store = store_of(cut(slice(0, 5)), tmp_path / "s.zarr")
    assert data_of(run_main(main, store, "--output", tmp_path / "run", *QUICK, "--json"))["refine"] == "none"


def test_source_and_output_are_needed(store: Path, tmp_path: Path) -> None:
    refused(store, code=2, said="Give SOURCE and --output DIR", left=tmp_path / "run")
    refused("--output", tmp_path / "run", code=2, said="Give SOURCE", left=tmp_path / "run")


def test_a_damaged_chunk_stops_the_run_by_name_and_it_goes_on_when_mended(store: Path, tmp_path: Path) -> None:
    import shutil

    source, output = tmp_path / "s.zarr", tmp_path / "run"
    shutil.copytree(store, source)
    chunk = source / "diffraction" / "c.0.0.0"
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    done = run_main(main, source, "--output", output, *FIXED)
    assert done.returncode == 6
    assert "diffraction chunk 0 (frames 0-159)" in done.stderr
    assert not (output / "reconstruction.zarr").exists()
    shutil.copyfile(store / "diffraction" / "c.0.0.0", chunk)
    expected = data_of(run_main(main, store, "--output", tmp_path / "other", *FIXED, "--json"))
    assert (
        data_of(run_main(main, "--resume", output, "--json"))["reconstruction_sha256"]
        == expected["reconstruction_sha256"]
    )


def test_another_store_under_the_same_name_is_refused_on_resume(store: Path, hard: Path, tmp_path: Path) -> None:
    import shutil

    source, output = tmp_path / "s.zarr", tmp_path / "run"
    shutil.copytree(store, source)
    data_of(run_main(main, source, "--output", output, *FIXED, "--json"))
    shutil.rmtree(source)
    shutil.copytree(hard, source)
    done = run_main(main, "--resume", output)
    assert (done.returncode, "the run was begun with" in done.stderr) == (6, True)


def test_what_is_there_already_is_not_touched(store: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    done = run_main(main, store, "--output", tmp_path / "run", *FIXED)
    assert (done.returncode, "exists already" in done.stderr) == (7, True)
    assert list((tmp_path / "run").iterdir()) == []
    data_of(run_main(main, store, "--output", tmp_path / "other", *FIXED, "--json"))
    done = run_main(main, store, "--output", tmp_path / "other", *FIXED)
    assert (done.returncode, f"--resume {tmp_path / 'other'}" in done.stderr) == (7, True)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("--iterations", "3"), "is --iterations 3"),
        (("--set", "seed=1", "--set", "threads=2"), "are --set seed=1 and --set threads=2"),
        (("--axes", "yxf"), "is --axes yxf"),
        (("--photons-per-frame", "1e5"), "is --photons-per-frame 100000.0"),
        (("a scan.zarr", "--quiet"), "is 'a scan.zarr'"),
    ],
)
def test_resume_takes_no_other_option_and_names_it_as_typed(tmp_path: Path, typed: tuple[str, ...], said: str) -> None:
    told = refused("--resume", tmp_path / "run", *typed, code=2, said="takes no other option", left=tmp_path / "run")
    assert f"takes no other option, and here {said}\n" in told


def test_only_a_run_of_ours_goes_on(store: Path, tmp_path: Path) -> None:
    refused("--resume", tmp_path / "none", code=5, said="no such run", left=tmp_path / "none")
    done = run_main(main, "--resume", store)
    assert (done.returncode, "no run of ours" in done.stderr) == (4, True)


def test_a_run_of_another_format_is_not_gone_on_with(store: Path, tmp_path: Path) -> None:
    data_of(run_main(main, store, "--output", tmp_path / "run", *FIXED, "--json"))
    facts = tmp_path / "run" / "run.json"
    facts.write_text(facts.read_text().replace('"format": "', '"format": "other-'))
    done = run_main(main, "--resume", tmp_path / "run")
    assert (done.returncode, "a run of format 'other-" in done.stderr) == (4, True)


def test_what_a_kill_left_half_written_is_swept_away(store: Path, tmp_path: Path) -> None:
    data_of(run_main(main, store, "--output", tmp_path / "run", *FIXED, "--json"))
    whole = tree_bytes(tmp_path / "run")
    (tmp_path / "run" / ".reconstruction.zarr.0123456789abcdef.partial" / "object").mkdir(parents=True)
    (tmp_path / "run" / ".report.json.0123456789abcdef.partial").write_text("{")
    data_of(run_main(main, "--resume", tmp_path / "run", "--json", "--quiet"))
    assert tree_bytes(tmp_path / "run") == whole


def test_two_processes_never_work_on_one_run(store: Path, tmp_path: Path) -> None:
    data_of(run_main(main, store, "--output", tmp_path / "run", *FIXED, "--json"))
    hold = "import fcntl, sys; f = open(sys.argv[1], 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-c", hold, str(tmp_path / "run" / "run.json")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline()
        done = run_main(main, "--resume", tmp_path / "run")
        other.communicate(b"\n")
    assert (done.returncode, "another process" in done.stderr) == (7, True)


def test_modes_that_the_frames_did_not_ask_for_are_not_dropped_in_silence(store: Path, tmp_path: Path) -> None:
    done = run_main(main, store, "--output", tmp_path / "run", *QUICK, "--modes", "3", "--json")
    (warning,) = data_of(done) and json.loads(done.stdout)["warnings"]
    assert warning.startswith("--modes 3: the frames did not ask for a refinement, so the probe has the 1 of the store")


def test_an_object_no_better_than_a_flat_one_is_called_so(tmp_path: Path) -> None:
    shuffled = scan().positions[np.random.default_rng(2).permutation(len(scan().positions))]
    store = store_of(scan(), tmp_path / "s.zarr", positions=shuffled)
    done = run_main(main, store, "--output", tmp_path / "run", *FIXED, "--json")
    (warning,) = data_of(done) and json.loads(done.stdout)["warnings"]
    assert "no better than a flat one" in warning


def test_what_is_no_photon_has_no_photon_scale(tmp_path: Path) -> None:
    store = store_of(scan(), tmp_path / "a.zarr", scale=None)
    data_of(run_main(main, store, "--output", tmp_path / "run", *FIXED, "--json"))
    assert xr.open_zarr(tmp_path / "run" / "reconstruction.zarr").attrs["photons_scale"] is None


def test_a_reconstruction_is_no_scan(store: Path, tmp_path: Path) -> None:
    data_of(run_main(main, store, "--output", tmp_path / "run", *FIXED, "--json"))
    refused(
        tmp_path / "run" / "reconstruction.zarr", "--output", tmp_path / "other", code=4, said="no diffraction frames",
        left=tmp_path / "other",
    )  # fmt: skip

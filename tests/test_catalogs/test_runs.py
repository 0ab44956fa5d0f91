"""Runs stand beside stores in a list; one that is not finished or is damaged is a row that says so."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from catalogs.commands import list_items, show_items
from catalogs.index import find_items, list_entries
from catalogs.run_page import page, page_data
from catalogs.table import table
from pipeline.evaluation.result import write_result
from pipeline.scan.bundle import pack_bundle
from pipeline.scan.record import open_record
from pipeline.scan.store import write_scan
from tests.builders import make_scan
from tests.guards import REPOSITORY, run_main
from tests.run_folders import BUNDLE, make_run, result

FIGURES = {
    "nll_held_out": 0.51, "nll_floor": 0.5, "frames": 7, "frame_shape": [8, 8], "loss": "poisson",
    "prior": {"name": "tv", "lam": 0.003}, "fit": {"model": "canvas", "steps": 12, "batch_size": 4},
    "refine": {"what": "none", "modes": 1, "reason": "held-out loss 0.51, 0.5 of photon noise alone: that is close"},
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan, a training on it, and a reconstruction that holds its own store."""
    folder = tmp_path_factory.mktemp("made")
    write_scan(make_scan(), folder / "a.zarr")
    make_run(folder / "object")
    make_run(folder / "trained", kind="train", parts=("bundle", "report"), **FIGURES)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "all"))


def row(path: Path) -> str:
    """The last line of the list of one run."""
    return run_main(list_items, path).stdout.splitlines()[-1]


def shown(path: Path) -> tuple[str, dict[str, Any]]:
    """The page of one run, for people and for programs."""
    (data,) = json.loads(run_main(show_items, path, "--json").stdout)["data"]["runs"]
    return run_main(show_items, path).stdout, data


def unfinished(path: Path, *, kind: str = "train") -> Path:
    return make_run(path, kind=kind, parts=("checkpoints",))


# --- what is listed


def test_runs_are_found_beside_stores_and_their_own_stores_are_not(folder: Path) -> None:
    assert [path.name for path in find_items([folder])] == ["a.zarr", "object", "trained"]
    assert [(entry.name, entry.kind, entry.verdict) for entry in list_entries([folder])] == [
        ("a", "scan", "pass"), ("object", "reconstruction", "finished"), ("trained", "training", "finished"),
    ]  # fmt: skip


def test_what_lies_in_the_folder_of_a_run_and_is_not_its_own_is_found(folder: Path) -> None:
    make_run(folder / "trained" / "used")
    write_scan(make_scan(), folder / "trained" / "other.zarr")
    names = [path.relative_to(folder).as_posix() for path in find_items([folder / "trained"])]
    assert names == ["trained", "trained/other.zarr", "trained/used"]


def test_facts_of_another_program_under_one_of_our_names_are_no_run(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "run.json").write_text("{}")
    write_scan(make_scan(), tmp_path / "theirs" / "a.zarr")
    assert [path.name for path in find_items([tmp_path])] == ["a.zarr"]


def test_a_row_of_a_training_tells_its_losses_and_its_bundle(folder: Path) -> None:
    (entry,) = list_entries([folder / "trained"])
    sha256 = json.loads((folder / "trained" / "report.json").read_text())["bundle_sha256"]
    assert (entry.nll_solver, entry.nll_network, entry.bundle_sha256) == (0.51, None, sha256)
    assert (entry.frames, entry.frame_shape, entry.quantity) == (7, (8, 8), "canvas, 12 steps")
    assert f"0.5100        -  {sha256[:12]}" in row(folder / "trained")


def test_a_row_of_a_reconstruction_tells_what_it_was_made_from(folder: Path) -> None:
    (entry,) = list_entries([folder / "object"])
    assert entry.made_from == open_record(folder / "object" / "data.zarr").store_sha256
    assert entry.store_sha256 == open_record(folder / "object" / "reconstruction.zarr").store_sha256
    assert (entry.quantity, entry.nll_solver) == ("object 20 x 21", None)


def test_a_reconstruction_whose_folder_has_gone_is_a_row_still(tmp_path: Path) -> None:
    about = {"store_sha256": "ab" * 32, "bundle_sha256": None, "nll": {"solver": 0.51, "network": None}}
    write_result(result(), tmp_path / "alone.zarr", attrs=about)
    (entry,) = list_entries([tmp_path / "alone.zarr"])
    assert (entry.kind, entry.problem, entry.nll_solver) == ("reconstruction", None, 0.51)


def test_a_reconstruction_that_lacks_a_fact_is_a_row_that_says_so(tmp_path: Path) -> None:
    write_result(result(), tmp_path / "alone.zarr", attrs={"store_sha256": "ab" * 32})
    (entry,) = list_entries([tmp_path / "alone.zarr"])
    assert entry.problem == "not as it was written: KeyError('bundle_sha256')"


@pytest.mark.parametrize("kind", ["train", "reconstruct"])
def test_a_run_without_its_result_says_how_to_go_on_and_is_no_fault(tmp_path: Path, kind: str) -> None:
    run = unfinished(tmp_path / "a run", kind=kind)
    (run / "report.json").write_text('{"half')  # written before the last part, so a kill may leave it so
    done = run_main(list_items, tmp_path)
    again = f"python -m pipeline.{kind} --resume '{run}'"
    assert (done.returncode, done.stdout.count("\n")) == (0, 2)
    assert f"incomplete; go on with: {again}" in done.stdout
    text, data = shown(run)
    assert (data["finished"], data["resume"]) == (False, again)
    assert again in text


def test_a_run_may_be_incomplete_under_a_name_of_its_own_in_a_table_with_stores(folder: Path) -> None:
    unfinished(folder / "a-rather-long-name-of-a-run")
    text = table(list_entries([folder]))
    assert len(text.splitlines()) == 2 + 1 + 4
    assert "BROKEN" not in text


# --- what is damaged


def remove(*names: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        for name in names:
            shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()

    return change


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda run: (run / name).write_text(text) and None


def replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        text = (run / name).read_text()
        assert old in text
        (run / name).write_text(text.replace(old, new, 1))

    return change


def flip(name: str, at: int) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        data = bytearray((run / name).read_bytes())
        data[at] ^= 1
        (run / name).write_bytes(data)

    return change


def other_bundle(run: Path) -> None:
    (run / "wts.h5.zip").unlink()
    pack_bundle(run / "wts.h5.zip", BUNDLE, {"store_sha256": "ab" * 32})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (remove("run.json"), "run.json"),
        (remove("run.toml"), "run.toml: cannot be read"),
        (write("run.json", "{"), "run.json"),
        (write("run.toml", "seed = "), "run.toml: cannot be read"),
        (write("report.json", "{"), "report.json: cannot be read"),
        (remove("report.json"), "report.json: cannot be read"),
        (write("report.json", '{"refine": 1, "frame_shape": 3}'), "not as it was written"),
        (write("report.json", '{"nll_held_out": "low"}'), "not as it was written"),
        (write("report.json", '{"bundle_sha256": "\\u001b[2J"}'), "not as it was written"),
        (replace("run.json", '"train"', '"dance"'), "a run of dance"),
        (replace("run.json", '"source": {', '"source": [], "else": {'), "not as it was written"),
        (remove("wts.h5.zip"), "wts.h5.zip: missing, and so is the state to make it from"),
        (remove("data.zarr"), "no such store"),
        (lambda run: (run / "data.zarr" / "diffraction" / "c.0.0.0").unlink(), "diffraction chunk 0"),
        (lambda run: os.truncate(run / "wts.h5.zip", (run / "wts.h5.zip").stat().st_size - 1), "its manifest says"),
        (lambda run: os.truncate(run / "wts.h5.zip", 20), "config.json is not there as written"),
        (flip("wts.h5.zip", 42), "config.json is not there as written"),
        (flip("wts.h5.zip", 120), "manifest.json is not there as written"),
        (other_bundle, "says store_sha256"),
    ],
)
def test_a_damaged_training_is_a_row_and_a_page_that_say_why(
    folder: Path, change: Callable[[Path], None], said: str
) -> None:
    change(folder / "trained")
    done = run_main(list_items, folder)
    (told,) = [line for line in done.stdout.splitlines() if line.startswith("trained")]
    assert done.returncode == 3
    assert "BROKEN: " in told
    assert said in told
    assert "\x1b" not in told
    assert done.stdout.count("BROKEN") == 1
    one = run_main(show_items, folder / "trained")
    assert (one.returncode, "BROKEN" in one.stdout) == (3, True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (remove("reconstruction.zarr"), "reconstruction.zarr: missing, and so is the state to make it from"),
        (remove("reconstruction.zarr/manifest.json"), "manifest.json"),
        (replace("run.json", '"reconstruct"', '"reconstruct", "bundle": {"sha256": 3}'), "not as it was written"),
    ],
)
def test_a_damaged_reconstruction_is_a_row_that_says_why(
    folder: Path, change: Callable[[Path], None], said: str
) -> None:
    change(folder / "object")
    assert "BROKEN: " in row(folder / "object")
    assert said in row(folder / "object")


# --- what is shown


def test_the_page_of_a_training_leads_from_source_to_bundle(folder: Path) -> None:
    text, data = shown(folder / "trained")
    store = open_record(folder / "trained" / "data.zarr").store_sha256
    assert data["store_sha256"] == store
    assert (data["seed"], data["kind"], data["finished"]) == (3, "training", True)
    for word in ("scan.npz", "5c" * 32, store, data["bundle_sha256"], "tv 0.003", "that is close", "0.51"):
        assert word in text
    assert text.splitlines()[-1].strip() == "python -m pipeline.train 'a scan'"


def test_a_store_that_has_gone_is_said_to_be_gone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", store="../a.zarr")
    assert "not there any more" not in shown(run)[0]
    shutil.rmtree(tmp_path / "a.zarr")
    assert "not there any more" in shown(run)[0]
    assert run_main(list_items, run).returncode == 0


def test_stores_and_runs_are_shown_together(folder: Path) -> None:
    data = json.loads(run_main(show_items, folder, "--json").stdout)["data"]
    assert [Path(one["path"]).name for one in data["stores"]] == ["a.zarr"]
    assert [Path(one["path"]).name for one in data["runs"]] == ["object", "trained"]


def test_what_a_run_says_of_itself_cannot_steer_a_terminal(folder: Path) -> None:
    write("run.toml", 'seed = "\\u001b[2J"\n')(folder / "trained")
    assert page_data(folder / "trained")["seed"] == "\x1b[2J"
    assert "\x1b" not in page(page_data(folder / "trained"))  # the text itself: a pipe gets it stripped by click


# --- what it costs


def test_a_list_reads_no_weight_of_a_training(folder: Path) -> None:
    """Weights may be wrong without the list noticing, which is for `verify` to find."""
    bundle = folder / "trained" / "wts.h5.zip"
    flip("wts.h5.zip", bundle.read_bytes().index(BUNDLE["wts.h5"]))(folder / "trained")
    assert run_main(list_items, folder).returncode == 0


def test_runs_are_listed_and_shown_without_torch_zarr_or_xarray(folder: Path) -> None:
    for verb in ("list", "show"):
        script = (
            "import sys\nfor name in ('torch', 'h5py', 'zarr', 'xarray'): sys.modules[name] = None\n"
            f"from catalogs.__main__ import main\nmain([{verb!r}, {str(folder)!r}])"
        )
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
        assert (done.returncode, done.stderr) == (0, "")

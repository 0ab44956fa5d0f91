"""What every command keeps: exit codes, one JSON object, instant help, no heavy import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli import VERBS
from tests.builders import legacy_members, make_counts, read_members, tree_bytes, write_legacy_npz
from tests.guards import REPOSITORY, run_command, run_module

MODULES = {
    "convert": "converters.npz2zarr",
    "restore": "converters.zarr2npz",
    "inspect": "converters.inspect",
    "iterate": "pipeline.iterate",
    "reconstruct": "pipeline.reconstruct",
    "train": "pipeline.train",
    "simulate": "pipeline.simulate",
    "verify": "pipeline.verify",
    "study": "pipeline.study",
    "catalog": "catalogs",
}


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    """A plain legacy file."""
    return write_legacy_npz(tmp_path / "scan.npz", legacy_members(make_counts(20)))


def heavy_modules_after(statement: str) -> str:
    """Which of torch, zarr and xarray a fresh interpreter has loaded after a statement."""
    script = f"import sys\n{statement}\nprint([m for m in ('torch', 'zarr', 'xarray', 'dask') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    return done.stdout.strip().splitlines()[-1] if done.stdout else done.stderr


def test_every_verb_has_a_module() -> None:
    assert set(MODULES) == set(VERBS)


@pytest.mark.parametrize("statement", ["import pipeline", "import converters, catalogs", "import pipeline.scan.record"])
def test_imports_load_no_torch_zarr_or_xarray(statement: str) -> None:
    assert heavy_modules_after(statement) == "[]"


@pytest.mark.parametrize("module", [*MODULES.values(), "pipeline.cli"])
def test_help_loads_no_torch_zarr_or_xarray(module: str) -> None:
    packages = {"pipeline.simulate", "pipeline.study", "catalogs"}
    name = f"{module}.__main__" if module in packages else module
    statement = f"from {name} import main\ntry: main(['--help'])\nexcept SystemExit as e: assert e.code == 0"
    assert heavy_modules_after(statement) == "[]"


def test_catalogs_list_loads_no_torch_zarr_or_xarray(npz: Path) -> None:
    assert run_command("converters.npz2zarr", npz, npz.with_suffix(".zarr")).returncode == 0
    statement = (
        f"from catalogs.__main__ import main\ntry: main(['list', {str(npz.parent)!r}])\n"
        "except SystemExit as e: assert e.code == 0"
    )
    assert heavy_modules_after(statement) == "[]"


@pytest.mark.parametrize("module", MODULES.values())
def test_help_names_the_command(module: str) -> None:
    done = run_command(module, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: python -m " + module)


def test_the_console_script_offers_every_verb() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from pipeline.cli import main; main()", "--help"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert all(verb in done.stdout for verb in VERBS)


def test_a_file_goes_there_and_back(npz: Path, tmp_path: Path) -> None:
    store, back = tmp_path / "scan.zarr", tmp_path / "back.npz"
    assert run_command("converters.inspect", npz).returncode == 0
    converted = run_command("converters.npz2zarr", npz, store)
    assert (converted.returncode, converted.stderr) == (0, "")
    assert "store_sha256" in converted.stdout
    assert run_command("pipeline.verify", store).returncode == 0
    assert run_command("converters.zarr2npz", store, back).returncode == 0
    assert read_members(back) == read_members(npz)


def test_json_is_one_object_with_schema_and_verdict(npz: Path, tmp_path: Path) -> None:
    for arguments in (
        ["converters.inspect", npz],
        ["converters.npz2zarr", npz, tmp_path / "scan.zarr"],
        ["pipeline.verify", tmp_path / "scan.zarr"],
        ["converters.zarr2npz", tmp_path / "scan.zarr", tmp_path / "back.npz"],
        ["catalogs", "list", tmp_path],
        ["catalogs", "show", tmp_path],
        ["pipeline.simulate", "--recipe", "list", "--output", "x.zarr"],
    ):
        done = run_module(*arguments, "--json")
        told = json.loads(done.stdout)
        assert told["ok"] is True, arguments
        assert told["schema"].startswith("ptychozarr.")
        assert told["schema"].endswith("/1")
        assert set(told) == {"schema", "ok", "data", "warnings"}
    assert len(json.loads(run_module("catalogs", "list", tmp_path, "--json").stdout)["data"]["entries"]) == 1


def test_a_failure_is_json_too(tmp_path: Path) -> None:
    done = run_module("pipeline.verify", tmp_path / "none.zarr", "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["ok"], told["error"]["exit"]) == (5, False, 5)
    assert set(told["error"]) == {"code", "message", "hint", "exit"}


def test_a_missing_extra_is_exit_eight_with_the_line_that_installs_it(npz: Path) -> None:
    script = f"import sys\nsys.modules['torch'] = None\nfrom pipeline.iterate import main\nmain([{str(npz)!r}])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 8
    assert "pip install 'ptychozarr[train]'" in done.stderr


def test_a_wrong_option_is_usage_error_two(npz: Path, tmp_path: Path) -> None:
    done = run_module("converters.npz2zarr", npz, tmp_path / "s.zarr", "--axes", "zyx")
    assert done.returncode == 2
    assert "error:" in done.stderr


def test_dry_run_writes_nothing(npz: Path, tmp_path: Path) -> None:
    before = tree_bytes(tmp_path)
    for arguments in (
        ["converters.npz2zarr", npz, tmp_path / "s.zarr"],
        ["pipeline.simulate", "--recipe", "demo", "--output", tmp_path / "s.zarr"],
    ):
        assert run_module(*arguments, "--dry-run").returncode == 0
    assert tree_bytes(tmp_path) == before


def test_the_same_conversion_again_is_unchanged(npz: Path, tmp_path: Path) -> None:
    run_module("converters.npz2zarr", npz, tmp_path / "s.zarr")
    before = tree_bytes(tmp_path)
    done = run_module("converters.npz2zarr", npz, tmp_path / "s.zarr", "--json")
    assert (done.returncode, json.loads(done.stdout)["data"]["status"]) == (0, "unchanged")
    assert tree_bytes(tmp_path) == before
    other = run_module("converters.npz2zarr", npz, tmp_path / "s.zarr", "--position-origin", "corner")
    assert other.returncode == 7
    assert tree_bytes(tmp_path) == before


def test_a_damaged_store_is_never_called_unchanged(npz: Path, tmp_path: Path) -> None:
    run_module("converters.npz2zarr", npz, tmp_path / "s.zarr")
    chunk = tmp_path / "s.zarr" / "diffraction" / "c.0.0.0"
    chunk.write_bytes(chunk.read_bytes()[::-1])
    done = run_module("converters.npz2zarr", npz, tmp_path / "s.zarr")
    assert done.returncode == 6
    assert "--overwrite" in done.stderr
    assert run_module("converters.npz2zarr", npz, tmp_path / "s.zarr", "--overwrite").returncode == 0
    assert run_module("pipeline.verify", tmp_path / "s.zarr").returncode == 0


@pytest.mark.parametrize("target", ["scan.npz", "x.npz", "x.store"])
def test_a_target_that_is_the_source_or_no_store_name_is_refused(npz: Path, target: str) -> None:
    before = tree_bytes(npz.parent)
    done = run_module("converters.npz2zarr", npz, npz.parent / target, "--overwrite")
    assert done.returncode == 2
    assert tree_bytes(npz.parent) == before


def test_converters_that_race_for_one_target_all_succeed(npz: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "converters.npz2zarr", str(npz), str(tmp_path / "s.zarr")]
    racing = [subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL) for _ in range(4)]
    assert [process.wait(timeout=60) for process in racing] == [0, 0, 0, 0]
    assert run_module("pipeline.verify", tmp_path / "s.zarr").returncode == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.zarr", "scan.npz"]


def test_restoring_again_is_unchanged_and_something_else_is_kept(npz: Path, tmp_path: Path) -> None:
    run_module("converters.npz2zarr", npz, tmp_path / "s.zarr")
    restore = ("converters.zarr2npz", tmp_path / "s.zarr")
    assert "is now" in run_module(*restore, tmp_path / "back.npz").stdout
    assert "is already" in run_module(*restore, tmp_path / "back.npz").stdout
    (tmp_path / "other.npz").write_bytes(b"mine")
    assert run_module(*restore, tmp_path / "other.npz").returncode == 7
    assert (tmp_path / "other.npz").read_bytes() == b"mine"
    assert run_module(*restore, tmp_path / "s.zarr" / "x.npz").returncode == 2
    assert run_module("pipeline.verify", tmp_path / "s.zarr").returncode == 0
    (tmp_path / "folder").mkdir()
    assert run_module(*restore, tmp_path / "folder").returncode == 0
    assert read_members(tmp_path / "folder" / "s.npz") == read_members(npz)


def test_a_damaged_store_is_not_ok_in_json_either(npz: Path, tmp_path: Path) -> None:
    run_module("converters.npz2zarr", npz, tmp_path / "s.zarr")
    (tmp_path / "s.zarr" / "more").write_text("")
    told = json.loads(run_module("pipeline.verify", tmp_path / "s.zarr", "--json").stdout)
    assert (told["ok"], told["error"]["exit"]) == (False, 6)
    assert told["data"]["damages"][0]["path"] == "more"


def test_inspect_tells_of_every_file_and_exits_with_the_worst(npz: Path, tmp_path: Path) -> None:
    done = run_module("converters.inspect", npz, tmp_path / "none.npz")
    assert done.returncode == 5
    assert "convertible" in done.stdout
    assert "no such file" in done.stdout


def test_options_of_an_npz_are_refused_for_a_store(tmp_path: Path) -> None:
    done = run_module("pipeline.simulate", "--output", tmp_path / "s.zarr", "--axes", "yxf")
    assert done.returncode == 2
    assert "--axes" in done.stderr
    assert run_module("pipeline.simulate", "--recipe", "list").returncode == 0
    assert run_module("pipeline.simulate", "--recipe", "demo").returncode == 2


def test_verify_names_what_is_damaged_and_exits_six(npz: Path, tmp_path: Path) -> None:
    run_module("converters.npz2zarr", npz, tmp_path / "s.zarr")
    chunk = tmp_path / "s.zarr" / "diffraction" / "c.0.0.0"
    chunk.write_bytes(chunk.read_bytes()[::-1])
    done = run_module("pipeline.verify", tmp_path / "s.zarr")
    assert done.returncode == 6
    assert "diffraction chunk 0 (frames 0-19)" in done.stdout


def test_a_dropped_original_comes_back_cast_with_exit_three(tmp_path: Path) -> None:
    stack = np.random.default_rng(0).random((5, 8, 8))
    npz = write_legacy_npz(tmp_path / "scan.npz", legacy_members(stack))
    made = run_module("converters.npz2zarr", npz, tmp_path / "s.zarr", "--contract", "data-001", "--drop-original")
    assert made.returncode == 0
    done = run_module("converters.zarr2npz", tmp_path / "s.zarr", tmp_path / "back.npz")
    assert done.returncode == 3
    assert "diffraction" in done.stderr


def test_a_store_that_kept_its_original_is_not_one_that_dropped_it(tmp_path: Path) -> None:
    npz = write_legacy_npz(tmp_path / "scan.npz", legacy_members(np.random.default_rng(0).random((5, 8, 8))))
    convert = ("converters.npz2zarr", npz, tmp_path / "s.zarr", "--contract", "data-001")
    assert run_module(*convert).returncode == 0
    assert run_module(*convert, "--drop-original").returncode == 7
    assert run_module(*convert, "--drop-original", "--overwrite").returncode == 0
    assert run_module(*convert).returncode == 7
    assert "unchanged" in run_module(*convert, "--drop-original").stdout


def test_inspect_tells_convertible_from_needing_an_option_from_never(npz: Path, tmp_path: Path) -> None:
    floats = make_counts().astype(np.float32)
    ambiguous = write_legacy_npz(tmp_path / "ambiguous.npz", legacy_members(floats))
    never = write_legacy_npz(tmp_path / "never.npz", {"x": np.zeros(3)})
    codes = [run_module("converters.inspect", path).returncode for path in (npz, ambiguous, never)]
    assert codes == [0, 3, 4]
    told = run_module("converters.inspect", ambiguous).stdout
    assert "--quantity" in told
    assert "whole numbers" in " ".join(told.split())
    assert run_module("converters.inspect", ambiguous, "--quantity", "counts").returncode == 0

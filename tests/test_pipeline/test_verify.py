"""`python -m pipeline.verify`: a store, a bundle or a run is what it claims, and each thing that is not is named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.evaluation.result import write_result
from pipeline.scan.audit import audit_store
from pipeline.scan.bundle import pack_bundle
from pipeline.scan.declaration import Declaration
from pipeline.scan.record import open_record
from pipeline.scan.store import write_scan
from pipeline.verify import main
from tests.builders import make_scan, tree_bytes
from tests.guards import REPOSITORY, run_main
from tests.run_folders import BUNDLE, make_run, result


def told(path: Path, *, code: int) -> tuple[str, dict[str, Any]]:
    """What verify says for people and for programs, which must agree on the exit code."""
    spoken, listed = run_main(main, path, "--quiet"), run_main(main, path, "--quiet", "--json")
    envelope = json.loads(listed.stdout)
    assert (spoken.returncode, listed.returncode) == (code, code), spoken.stdout + spoken.stderr
    assert envelope["ok"] is (code < 4)
    assert envelope["schema"] == "ptychozarr.verify/1"
    assert envelope["data"]["path"] == str(path)
    return spoken.stdout, envelope["data"]


def damaged(path: Path) -> list[str]:
    """What is damaged, as `path: found`."""
    text, data = told(path, code=6)
    assert all(f"{damage['holds']}: {damage['found']}" in text for damage in data["damages"])
    return [f"{damage['path']}: {damage['found']}" for damage in data["damages"]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders to copy: a whole reconstruction, and a whole training beside its store."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "training").mkdir()
    make_run(folder / "reconstruction")
    make_run(folder / "training" / "run", kind="train", store="../scan.zarr", parts=("bundle", "report"))
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A whole reconstruction whose store is its own."""
    return shutil.copytree(made / "reconstruction", tmp_path / "run")


@pytest.fixture
def training(made: Path, tmp_path: Path) -> Path:
    """A whole training whose store is elsewhere."""
    shutil.copytree(made / "training", tmp_path, dirs_exist_ok=True)
    replace("run.json", '"../scan.zarr"', json.dumps(str(tmp_path / "scan.zarr")))(tmp_path / "run")
    return tmp_path / "run"


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# --- a store and a bundle


def test_a_whole_store_is_as_written_and_a_damaged_one_names_its_frames(tmp_path: Path) -> None:
    sha256 = write_scan(make_scan(), tmp_path / "s.zarr")
    text, data = told(tmp_path / "s.zarr", code=0)
    assert text.splitlines()[0].endswith(f"{data['n_files']} files, {data['n_bytes']} bytes, all as written")
    assert text.splitlines()[1] == f"store_sha256 {sha256}"
    assert (data["kind"], data["store_sha256"], data["damages"]) == ("store", sha256, [])
    flip(tmp_path / "s.zarr" / "diffraction" / "c.0.0.0")
    (told_of,) = damaged(tmp_path / "s.zarr")
    assert told_of.startswith("diffraction/c.0.0.0: SHA-256 is")


@pytest.mark.parametrize("name", ["manifest.json", "position_x/zarr.json", "position_x/c.0"])
def test_a_pipe_or_a_link_in_a_store_is_damage_that_nobody_waits_for(tmp_path: Path, name: str) -> None:
    store = tmp_path / "s.zarr"
    write_scan(make_scan(), store)
    (store / name).rename(tmp_path / "elsewhere")
    for make in (os.mkfifo, lambda path: path.symlink_to(tmp_path / "elsewhere")):
        make(store / name)
        assert any("a link or special file" in damage.found for damage in audit_store(store).damages)
        (store / name).unlink()


def test_a_whole_bundle_is_as_written_and_a_damaged_one_names_its_member(tmp_path: Path) -> None:
    path = tmp_path / "model.zip"  # whatever its name is
    sha256 = pack_bundle(path, BUNDLE, {"store_sha256": "ab"})
    text, data = told(path, code=0)
    assert text == f"{path}: a bundle of 3 files, {path.stat().st_size} bytes, all as written\nbundle_sha256 {sha256}\n"
    assert (data["kind"], data["bundle_sha256"], data["n_files"], data["damages"]) == ("bundle", sha256, 3, [])
    assert data["lineage"] == {"store_sha256": "ab"}
    changed = path.read_bytes().replace(b"weights", b"weighty")
    path.write_bytes(changed)
    (told_of,) = damaged(path)
    assert told_of.startswith("wts.h5: changed: its CRC-32 is")


def test_what_is_nothing_of_ours_is_told_from_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("hello")
    os.mkfifo(tmp_path / "pipe")
    np.savez(tmp_path / "scan.npz", x=np.zeros(3))
    names = ("none", "folder", "text", "pipe", "scan.npz")
    codes = {name: run_main(main, tmp_path / name).returncode for name in names}
    assert codes == {"none": 5, "folder": 4, "text": 4, "pipe": 4, "scan.npz": 4}


# --- a run


def test_a_whole_run_is_as_written_part_by_part(run: Path) -> None:
    text, data = told(run, code=0)
    assert text.splitlines()[0] == f"{run}: a run of reconstruct, all as written"
    assert [part["name"] for part in data["parts"]] == ["data.zarr", "reconstruction.zarr"]
    for part in data["parts"]:
        assert part["sha256"] == open_record(run / part["name"]).store_sha256
        assert f"  {part['name']}: {part['n_files']} files, {part['n_bytes']} bytes, sha256 {part['sha256']}" in text
    assert (data["kind"], data["run_kind"], data["damages"], data["findings"]) == ("run", "reconstruct", [], [])


def test_a_run_may_be_moved_with_its_store(run: Path) -> None:
    run.rename(run.with_name("moved"))
    told(run.with_name("moved"), code=0)


def test_a_whole_training_is_as_written_with_its_bundle(training: Path) -> None:
    _, data = told(training, code=0)
    report = json.loads((training / "report.json").read_text())
    assert [part["sha256"] for part in data["parts"]] == [
        open_record(training.parent / "scan.zarr").store_sha256, report["bundle_sha256"],
    ]  # fmt: skip


def test_every_file_of_a_run_that_a_digest_covers_is_covered(run: Path) -> None:
    covered = [name for name in tree_bytes(run) if "/" in name]
    assert len(covered) > 30
    for name in covered:
        before = (run / name).read_bytes()
        flip(run / name)
        store, _, file = name.partition("/")
        assert any(line.startswith(f"{store}/") for line in damaged(run)), name
        (run / name).unlink()
        assert any(line.startswith(f"{store}/{file}: ") or "missing" in line for line in damaged(run)), name
        (run / name).write_bytes(before)
    told(run, code=0)


def test_a_store_that_has_gone_is_a_finding_in_words(training: Path) -> None:
    sha256 = open_record(training.parent / "scan.zarr").store_sha256
    shutil.rmtree(training.parent / "scan.zarr")
    text, data = told(training, code=3)
    assert text.splitlines()[0] == f"{training}: a run of train, as far as it is there, as written"
    (finding,) = data["findings"]
    assert f"scan.zarr: the store is not there any more, so only its digest is known: store_sha256 {sha256}" in text
    assert finding["told"] in text
    flip(training / "wts.h5.zip")
    assert "the store is not there any more" in told(training, code=6)[0]


def test_another_store_at_the_same_place_is_damage(training: Path) -> None:
    store = training.parent / "scan.zarr"
    shutil.rmtree(store)
    write_scan(make_scan(n_frames=9), store)
    (line,) = damaged(training)
    assert line.startswith(f"{store}: its store_sha256 is {open_record(store).store_sha256}, the run was begun with ")


def replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        text = (run / name).read_text()
        assert old in text
        (run / name).write_text(text.replace(old, new))

    return change


def remove(name: str) -> Callable[[Path], None]:
    return lambda run: shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()


def link(name: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        (run / name).rename(run.parent / "elsewhere")
        (run / name).symlink_to(run.parent / "elsewhere")

    return change


def overwrite(name: str, data: bytes) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        remove(name)(run)
        (run / name).write_bytes(data)

    return change


def empty_folder(name: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        remove(name)(run)
        (run / name).mkdir()

    return change


def of_another_store(run: Path) -> None:
    remove("reconstruction.zarr")(run)
    write_result(result(), run / "reconstruction.zarr", attrs={"store_sha256": "ab" * 32, "bundle_sha256": None})


def pipe(name: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        remove(name)(run)
        os.mkfifo(run / name)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (remove("data.zarr"), "data.zarr: missing"),
        (empty_folder("data.zarr"), "data.zarr: no store"),
        (link("data.zarr"), "data.zarr: a link, not the run's own"),
        (link("reconstruction.zarr"), "reconstruction.zarr: a link, not the run's own"),
        (remove("reconstruction.zarr"), "reconstruction.zarr: missing, and so is the state to make it from"),
        (empty_folder("reconstruction.zarr"), "reconstruction.zarr: no store"),
        (of_another_store, f"reconstruction.zarr: says store_sha256 '{'ab' * 32}', the run's is "),
        (remove("report.json"), "report.json: cannot be read: missing"),
        (overwrite("report.json", b"{"), "report.json: cannot be read: Expecting"),
        (overwrite("report.json", b"[]"), "report.json: cannot be read: not a JSON object"),
        (overwrite("report.json", b"[" * 100_000), "report.json: cannot be read: nested too deeply"),
        (overwrite("report.json", b'{"source": {"store_sha256": 3}}'), "report.json: says store_sha256 3, the run's"),
        (pipe("report.json"), "report.json: cannot be read: missing, or not a plain file"),
        (link("report.json"), "report.json: cannot be read: missing, or not a plain file"),
        (remove("run.toml"), "run.toml: cannot be read: missing"),
        (overwrite("run.toml", b"seed = \n"), "run.toml: cannot be read: Invalid value"),
    ],
)
def test_what_a_reconstruction_lacks_or_says_wrongly_is_named(
    run: Path, change: Callable[[Path], None], said: str
) -> None:
    change(run)
    (line,) = damaged(run)
    assert line.startswith(said)


def other_bundle(run: Path) -> None:
    remove("wts.h5.zip")(run)
    sha256 = json.loads((run / "run.json").read_text())["store_sha256"]
    pack_bundle(run / "wts.h5.zip", {**BUNDLE, "wts.h5": b"other"}, {"store_sha256": sha256})


def bundle_of_another_store(run: Path) -> None:
    remove("wts.h5.zip")(run)
    sha256 = pack_bundle(run / "wts.h5.zip", BUNDLE, {"store_sha256": "cd" * 32})
    report = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps({**report, "bundle_sha256": sha256}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_bundle, "report.json: says bundle_sha256 '"),
        (replace("report.json", "bundle_sha256", "bundle"), "report.json: says bundle_sha256 None, that of wts.h5.zip"),
        (bundle_of_another_store, f"wts.h5.zip: says store_sha256 '{'cd' * 32}', the run's is "),
        (remove("wts.h5.zip"), "wts.h5.zip: missing, and so is the state to make it from"),
        (link("wts.h5.zip"), "wts.h5.zip: a link, not the run's own"),
        (overwrite("wts.h5.zip", b"no zip"), "wts.h5.zip: "),
        (empty_folder("wts.h5.zip"), "wts.h5.zip: "),
        (remove("report.json"), "report.json: cannot be read: missing"),
    ],
)
def test_what_a_training_lacks_or_says_wrongly_is_named(
    training: Path, change: Callable[[Path], None], said: str
) -> None:
    change(training)
    (line,) = damaged(training)
    assert line.startswith(said)


def test_a_damaged_bundle_is_named_with_its_member(training: Path) -> None:
    changed = (training / "wts.h5.zip").read_bytes().replace(b"weights", b"weighty")
    (training / "wts.h5.zip").write_bytes(changed)
    lines = damaged(training)
    assert lines[0].startswith("wts.h5.zip/wts.h5: changed")
    assert lines[1].startswith("report.json: says bundle_sha256")


def test_a_result_of_another_bundle_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", kind="train", parts=("bundle", "report"))
    sha256 = json.loads((run / "run.json").read_text())["store_sha256"]
    write_result(result(), run / "reconstruction.zarr", attrs={"store_sha256": sha256, "bundle_sha256": "ef" * 32})
    (line,) = damaged(run)
    assert line.startswith(f"reconstruction.zarr: says bundle_sha256 '{'ef' * 32}', the run's is ")


def test_a_reconstruction_may_name_a_bundle_that_lies_elsewhere(tmp_path: Path) -> None:
    told(make_run(tmp_path / "run", bundle_sha256="ab" * 32), code=0)


@pytest.mark.parametrize(("kind", "lacking"), [("reconstruct", "reconstruction.zarr"), ("train", "wts.h5.zip")])
def test_an_unfinished_run_says_how_to_go_on(tmp_path: Path, kind: str, lacking: str) -> None:
    run = make_run(tmp_path / "run", kind=kind, parts=("checkpoints", "report"), bundle_sha256="ab" * 32)
    (run / "report.json").write_text('{"half')  # written before the last part, so a kill may leave it so
    _, data = told(run, code=3)
    (finding,) = data["findings"]
    assert finding["told"] == (
        f"the run is not finished: {lacking} is not there yet; go on with python -m pipeline.{kind} --resume {run}"
    )


@pytest.mark.parametrize(
    "facts",
    [
        b"{",
        b"[]",
        b"{}",
        b'{"format": "ptychozarr-run/1"}',
        b'{"format": "ptychozarr-run/2", "kind": "train", "store": "data.zarr", "store_sha256": "ab"}',
        b'{"format": "ptychozarr-run/1", "kind": "../x", "store": "data.zarr", "store_sha256": "ab"}',
        b'{"format": "ptychozarr-run/1", "kind": "train", "store": "\\u001b[2J", "store_sha256": "ab"}',
        b'{"format": "ptychozarr-run/1", "kind": "train", "store": "data.zarr", "store_sha256": "\\u001b[2J"}',
    ],
)
def test_a_folder_with_other_facts_is_no_run_of_ours(run: Path, facts: bytes) -> None:
    (run / "run.json").write_bytes(facts)
    done = run_main(main, run)
    assert (done.returncode, "no run of ours" in done.stderr) == (4, True)
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize("place", ["/etc", "../nothing", "/dev/null", "../run"])
def test_a_recorded_place_without_a_store_is_a_finding_and_not_searched(run: Path, place: str) -> None:
    replace("run.json", '"data.zarr"', json.dumps(place))(run)
    assert "the store is not there any more" in told(run, code=3)[0]


def test_runs_and_bundles_are_verified_without_torch_or_hdf5(training: Path) -> None:
    for path in (training, training / "wts.h5.zip"):
        script = (
            "import sys\nfor name in ('torch', 'h5py', 'zarr', 'xarray'): sys.modules[name] = None\n"
            f"from pipeline.verify import main\nmain([{str(path)!r}])"
        )
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_a_run_as_the_commands_begin_it_is_known(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the extra `train` is not installed")
    from pipeline.config import ReconstructConfig
    from pipeline.evaluation.folder import begin_run

    store, run = tmp_path / "s.zarr", tmp_path / "run"
    sha256 = write_scan(make_scan(), store)
    begin_run(
        store, run, ReconstructConfig(), kind="reconstruct", said=Declaration(), catalog=None, command=["python"],
        check=lambda record: None,
    )  # fmt: skip
    assert "not finished" in told(run, code=3)[0]
    write_result(result(), run / "reconstruction.zarr", attrs={"store_sha256": sha256, "bundle_sha256": None})
    (run / "report.json").write_text("{}")
    _, data = told(run, code=0)
    assert [(part["name"], part["sha256"]) for part in data["parts"]] == [
        (str(store), sha256), ("reconstruction.zarr", open_record(run / "reconstruction.zarr").store_sha256),
    ]  # fmt: skip

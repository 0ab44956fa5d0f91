"""A full disk ends a run in one line that says how to go on; nothing is half there, and it goes on to equal bytes."""

from __future__ import annotations

import errno
import functools
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from pipeline.cli import environment_fault  # noqa: E402  # behind the check that torch is there
from pipeline.errors import EnvironmentFault, NotFoundError  # noqa: E402
from pipeline.evaluation.folder import RunFolder, at_work, publish  # noqa: E402
from pipeline.learning.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from pipeline.learning.journal import append_whole  # noqa: E402
from pipeline.scan.record import open_record  # noqa: E402
from tests.guards import REPOSITORY, run_command  # noqa: E402
from tests.physics_scans import make_scan  # noqa: E402
from tests.solved_stores import store_of  # noqa: E402

QUICK = (
    "--set", "solver.iterations=4", "--set", "prior.choice_iterations=3", "--set", "solver.start_iterations=2",
    "--set", "solver.batch_pixels=51200", "--prior", "quadratic", "--quiet",
)  # fmt: skip
OPTIONS = {
    "reconstruct": QUICK,
    "train": (*QUICK, "--batch-size", "40", "--steps", "6", "--set", "fit.warmup=2", "--set", "network.width=4"),
}
REPORTED = ("report.json", "report.html", "report.png", "loss.png")
RESULTS = {"reconstruct": "reconstruction.zarr", "train": "wts.h5.zip"}


def begun(path: Path) -> RunFolder:
    """A run's folder with as little in it as can be worked on."""
    (path / "checkpoints").mkdir(parents=True)
    (path / "run.json").write_text("{}")
    return RunFolder(path=path, kind="train", facts={}, store=path)


# --- one write


def test_a_full_disk_is_told_with_its_place_and_what_to_do() -> None:
    fault = environment_fault(OSError(errno.ENOSPC, "No space left on device"), where=Path("run"), resume="again")
    assert (fault.exit_code, fault.code) == (8, "environment.no_space")
    assert (fault.message, fault.hint) == ("run: No space left on device", "free some space, then go on with: again")
    other = environment_fault(OSError(errno.EIO, "Input/output error", "a.file"), where=Path("run"), resume="again")
    assert (other.message, other.hint) == ("a.file: Input/output error", "mend that, then go on with: again")
    alone = environment_fault(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert (alone.message, alone.code) == ("Disk quota exceeded", "environment.no_space")


@contextmanager
def files_of_at_most(n_bytes: int) -> Iterator[None]:
    """No file may grow larger: what fits is written, then the system refuses."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_state_that_cannot_be_written_leaves_the_one_before_and_says_how_to_go_on(tmp_path: Path) -> None:
    run = begun(tmp_path / "a run")
    path, identity = run.checkpoints / "fit.safetensors", {"store_sha256": "ab"}
    save_checkpoint(path, {"x": torch.ones(3)}, {"step": 1}, identity=identity)
    with pytest.raises(EnvironmentFault, match="File too large") as refused, at_work(run), files_of_at_most(1000):
        save_checkpoint(path, {"x": torch.zeros(3000)}, {"step": 2}, identity=identity)
    assert refused.value.code == "checkpoint.unwritable"
    assert refused.value.hint == f"mend that, then go on with: python -m pipeline.train --resume '{run.path}'"
    assert [one.name for one in run.checkpoints.iterdir()] == [path.name]
    found = load_checkpoint(path, identity=identity)
    assert found is not None
    assert found[1] == {"step": 1}


def test_any_other_file_that_cannot_be_written_says_so_too(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    with pytest.raises(EnvironmentFault, match="File too large") as refused, at_work(run), files_of_at_most(100):
        (run.checkpoints / "report.json").write_text("x" * 1000)
    assert refused.value.hint == f"mend that, then go on with: python -m pipeline.train --resume {run.path}"
    with pytest.raises(NotFoundError, match="mine"), at_work(run):  # an error of ours is told as it is
        raise NotFoundError("mine", code="mine")


def test_a_line_is_appended_whole_or_not_at_all(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    append_whole(log, b"0123456789\n")
    with pytest.raises(OSError, match="File too large"), files_of_at_most(20):
        append_whole(log, b"0123456789\n")
    assert log.read_bytes() == b"0123456789\n"
    append_whole(log, b"more\n")
    assert log.read_bytes() == b"0123456789\nmore\n"


def test_a_report_is_published_whole_and_replaces_an_earlier_one(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    (run.path / "report.json").write_text("earlier")
    (run.checkpoints / "report.json").write_text("whole")
    publish(run, "report.json")
    assert (run.path / "report.json").read_text() == "whole"
    assert list(run.checkpoints.iterdir()) == []


# --- a whole run on a disk that is too small


SCRIPT = """
mount -t tmpfs -o size={kib}k none "{disk}" || exit 99
"{python}" -m pipeline.{kind} "{source}" --output "{disk}/run" {options}
echo $? > "{kept}/code"
cp -r "{disk}" "{kept}/left"
mount -o remount,size=64m "{disk}"
[ -d "{disk}/run" ] && "{python}" -m pipeline.{kind} --resume "{disk}/run" --quiet > "{kept}/resumed"
cp -r "{disk}" "{kept}/whole"
"""


def on_a_disk_of(kib: int, kind: str, source: Path, place: Path) -> subprocess.CompletedProcess[str]:
    """Run a command on a disk of its own, keep what it left, go on with more space; skipped where no disk can be."""
    disk, kept = place / "disk", place / "kept"
    disk.mkdir()
    kept.mkdir()
    options = " ".join(OPTIONS[kind])
    script = SCRIPT.format(
        kib=kib, disk=disk, kept=kept, kind=kind, source=source, options=options, python=sys.executable
    )
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here")
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, cwd=REPOSITORY, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if not (kept / "code").exists():
        pytest.skip(f"no disk of its own: {done.stderr.strip()}")
    return done


def digest(run: Path, kind: str) -> str:
    if kind == "reconstruct":
        return open_record(run / RESULTS[kind]).store_sha256
    return (run / RESULTS[kind]).read_bytes().hex()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store_of(make_scan(noise=True), tmp_path_factory.mktemp("scan") / "good.zarr")


@pytest.fixture(scope="module")
def expected(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """What a run gives where there is space."""

    @functools.cache
    def of(kind: str) -> str:
        output = tmp_path_factory.mktemp("whole") / kind
        done = run_command(f"pipeline.{kind}", store, "--output", output, *OPTIONS[kind], OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr
        return digest(output, kind)

    return of


@pytest.mark.parametrize(
    ("kind", "kib"),
    [
        pytest.param("reconstruct", 60, marks=pytest.mark.long),  # its first state
        pytest.param("reconstruct", 400, marks=pytest.mark.long),  # its picture and report
        pytest.param("train", 300, marks=pytest.mark.long),
        pytest.param("train", 900, marks=pytest.mark.long),
        pytest.param("train", 40, marks=pytest.mark.long),
        pytest.param("reconstruct", 1000, marks=pytest.mark.long),
    ],
)
def test_a_run_on_a_full_disk_says_so_and_goes_on_to_the_same_bytes(
    store: Path, expected: Callable[[str], str], tmp_path: Path, kind: str, kib: int
) -> None:
    done = on_a_disk_of(kib, kind, store, tmp_path)
    left = tmp_path / "kept" / "left" / "run"
    assert (tmp_path / "kept" / "code").read_text() == "8\n", done.stderr
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert "No space left on device" in error
    run = tmp_path / "disk" / "run"
    assert hint == f"  hint: free some space, then go on with: python -m pipeline.{kind} --resume {run}"
    names = {path.name for path in left.iterdir()}
    assert names <= {"run.json", "run.toml", "metrics.jsonl", "checkpoints", *REPORTED}
    if "metrics.jsonl" in names:
        text = (left / "metrics.jsonl").read_text()
        assert text == "" or text.endswith("\n")
        for line in text.splitlines():
            json.loads(line)
    whole = tmp_path / "kept" / "whole" / "run"
    assert digest(whole, kind) == expected(kind)
    assert not (whole / "checkpoints").exists()


@pytest.mark.long
def test_a_full_disk_while_a_legacy_file_is_converted_leaves_nothing(tmp_path: Path) -> None:
    npz = tmp_path / "scan.npz"
    assert run_command("pipeline.simulate", "--recipe", "demo", "--output", npz).returncode == 0
    done = on_a_disk_of(40, "reconstruct", npz, tmp_path)
    assert (tmp_path / "kept" / "code").read_text() == "8\n", done.stderr
    assert "nothing was left under the target name" in done.stderr
    assert list((tmp_path / "kept" / "left").iterdir()) == []

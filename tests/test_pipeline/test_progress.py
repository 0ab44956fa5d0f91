"""What a long run tells on the way: a bar on a real terminal, plain lines anywhere else."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from pipeline import cli, train  # noqa: E402  # behind the check that torch is there
from pipeline.cli import Telling  # noqa: E402
from tests.guards import REPOSITORY, run_main  # noqa: E402
from tests.physics_scans import make_scan  # noqa: E402
from tests.solved_stores import store_of  # noqa: E402

SHORT = (
    "--set", "solver.iterations=3", "--set", "prior.choice_iterations=2", "--set", "solver.start_iterations=1",
    "--set", "network.width=4", "--batch-size", "40", "--prior", "quadratic",
)  # fmt: skip
NOTE = r"loss 0\.\d+, [\d,]+ frames/s, data wait [\d.e-]+ %, \d+:\d\d left"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store_of(make_scan(noise=True), tmp_path_factory.mktemp("progress") / "good.zarr")


def on_terminal(*words: str | Path, watch: Callable[[str, subprocess.Popen[bytes]], None] = lambda t, p: None) -> str:
    """Everything that a command writes to a terminal of 110 columns as its stderr."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 110, 0, 0))
    run = subprocess.Popen(
        [sys.executable, "-m", *map(str, words)], cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=theirs
    )
    os.close(theirs)
    seen = ""
    try:
        while some := os.read(ours, 1 << 16):
            seen += some.decode(errors="replace")
            watch(seen, run)
    except OSError:  # Linux' way to say that nobody writes any more
        pass
    finally:
        os.close(ours)
        run.wait(60)
    return seen


def test_on_a_terminal_a_bar_tells_phase_loss_speed_waiting_and_time_left(store: Path, tmp_path: Path) -> None:
    seen = on_terminal("pipeline.train", store, "--output", tmp_path / "run", *SHORT, "--steps", "30")
    drawn = [line for line in seen.split("\r") if re.match(rf"fit +\d+%\|.*\| *\d+/30, {NOTE}", line)]
    assert len(drawn) >= 2
    assert all(len(line.rstrip("\n")) <= 110 for line in drawn)
    assert re.search(r"evidence: +0%\|", seen)  # a bar of its own, which quick passes may end before it is drawn again
    assert "of 30 steps" not in seen


def test_a_stopped_run_says_so_on_a_line_of_its_own(store: Path, tmp_path: Path) -> None:
    def stop(seen: str, run: subprocess.Popen[bytes]) -> None:
        if re.search(r"fit +\d+%\|", seen) and not sent:
            sent.append(True)
            run.send_signal(signal.SIGINT)

    sent: list[bool] = []
    seen = on_terminal("pipeline.train", store, "--output", tmp_path / "run", *SHORT, "--steps", "5000", watch=stop)
    before, _, told = seen.rpartition("\r" + " " * 100)
    assert "fit " in before
    assert re.match(r" *\rerror: .*interrupted, state kept\r\n  hint: [^\r]*\r\n$", told)


def test_into_a_pipe_go_plain_lines_alone(store: Path, tmp_path: Path) -> None:
    words = ["pipeline.train", store, "--output", tmp_path / "run", *SHORT, "--steps", "3"]
    done = subprocess.run([sys.executable, "-m", *map(str, words)], cwd=REPOSITORY, capture_output=True, check=True)
    assert b"\r" not in done.stderr
    assert b"|" not in done.stderr


def test_a_line_tells_the_same_as_the_bar(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "QUICK_S", 0.0)
    done = run_main(train.main, store, "--output", tmp_path / "run", *SHORT, "--steps", "20")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("fit: ")]
    assert len(lines) == 10
    assert all(re.fullmatch(rf"fit: \d+ of 20 steps, {NOTE}", line) for line in lines)
    assert re.search(r"solve: \d of \d passes, [\d,]+ frames/s", done.stderr)


def test_quiet_is_quiet(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "QUICK_S", 0.0)
    done = run_main(train.main, store, "--output", tmp_path / "run", *SHORT, "--steps", "3", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")


def test_speed_and_time_left_are_of_this_sitting(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Shown:
        def __call__(self, done: int, note: str = "") -> None:
            shown.append(note)

        def close(self) -> None: ...

    monkeypatch.setattr(cli, "progress", lambda label, total, unit: Shown())
    telling = Telling(steps=("fit",))
    advance = telling.begin("fit", 1000)
    advance(900)  # of an earlier sitting
    telling.hear({"loss": 0.5, "passes": 10, "wall_s": 5.0, "wait_s": 0.1, "frames": 40})
    advance(1)
    assert shown == ["", "loss 0.5, 80 frames/s, data wait 2 %, 0:50 left"]
    telling.begin("solve", 5000)(0)
    telling.hear({"held_out_loss": 0.25, "passes": 1, "wall_s": 1.0, "wait_s": 0.0, "frames": 1000})
    telling.begin("another", 3)(0)
    assert shown[2:] == ["", ""]

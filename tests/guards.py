"""Guards that fail a test when something happens that must not."""

from __future__ import annotations

import importlib
import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import click
import dask
import pytest

REPOSITORY = Path(__file__).parents[1]


@contextmanager
def forbid_compute() -> Iterator[None]:
    """Raise when dask computes anything."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("something was computed")

    with dask.config.set(scheduler=refuse):
        yield


def run_command(*arguments: str | Path, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m ...` as a user would, from the repository unless `cwd` is given."""
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd or REPOSITORY,
        env={**os.environ, **env},
        timeout=100,
        check=False,
    )


def run_module(module: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command of `python -m MODULE` inside this process; see `run_main`."""
    return run_main(command_named(module), *arguments)


def command_named(module: str) -> click.Command:
    """The command of `python -m MODULE`."""
    package = (REPOSITORY / module.replace(".", "/")).is_dir()
    command = importlib.import_module(f"{module}.__main__" if package else module).main
    assert isinstance(command, click.Command)
    return command


def run_main(main: click.Command, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command inside this process, forty times faster than `run_command`; an escaping exception escapes."""
    given, out, err = [*map(str, arguments)], io.StringIO(), io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []  # those of pytest would be closed when the command sets up its own
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
            main.main(given)
    finally:
        root.handlers = handlers
        root.setLevel(level)
    assert isinstance(end.value.code, int)
    return subprocess.CompletedProcess(given, end.value.code, out.getvalue(), err.getvalue())

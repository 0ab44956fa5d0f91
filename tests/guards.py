"""Guards that fail a test when something happens that must not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dask

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

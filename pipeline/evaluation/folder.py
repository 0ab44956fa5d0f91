"""The folder of a run: it appears whole, with what was asked for inside, and can be gone on with from then on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TypeVar

from pipeline import __version__
from pipeline.cli import environment_fault
from pipeline.config import ReconstructConfig, TrainConfig
from pipeline.errors import (
    ConfigError,
    EnvironmentFault,
    IntegrityError,
    InterruptedRun,
    NotFoundError,
    PipelineError,
    SourceError,
    TargetExistsError,
    TerminatedRun,
)
from pipeline.learning.checkpoint import UNWRITABLE
from pipeline.scan.audit_run import CHECKPOINTS, CONFIG_NAME, DATA_NAME, FACTS_NAME, FORMAT, resuming
from pipeline.scan.declaration import Declaration
from pipeline.scan.ingest import ingest, plan_ingest
from pipeline.scan.locate import locate
from pipeline.scan.record import StoreRecord, open_record
from pipeline.scan.staging import only_here, staged_folder, sweep
from pipeline.settings import resolve_config, to_toml
from pipeline.stream.waiting import faults_of_workers

DECISIVE: Final = ("ptychozarr", "numpy", "torch")
"""What bits depend on, besides store, configuration and bundle."""

Tree = TypeVar("Tree")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFolder:
    """A run's folder, opened: its kind ("reconstruct"), its facts from run.json and the store it is about."""

    path: Path
    kind: str
    facts: Mapping[str, Any]
    store: Path

    def config(self, tree: type[Tree]) -> Tree:
        """The resolved configuration of the run."""
        return resolve_config(tree, file=self.path / CONFIG_NAME, settings={})

    @property
    def checkpoints(self) -> Path:
        """Where states are kept until the run is whole."""
        return self.path / CHECKPOINTS

    def identity(self, config: ReconstructConfig | TrainConfig) -> Mapping[str, str | None]:
        """What the bits of this run's states depend on, by name."""
        told = to_toml(replace(config, num_workers=0))  # workers change nothing
        return {
            "store_sha256": self.facts["store_sha256"],
            "bundle_sha256": self.facts["bundle"]["sha256"] if "bundle" in self.facts else None,
            "configuration": hashlib.sha256(told.encode()).hexdigest(),
            **{f"version of {name}": text for name, text in versions().items() if name in DECISIVE},
        }


def begin_run(
    source: Path,
    output: Path,
    config: object,
    *,
    kind: str,
    said: Declaration,
    catalog: Path | None,
    command: Sequence[str],
    check: Callable[[StoreRecord], object],
    about: Mapping[str, Any] | None = None,
) -> RunFolder:
    """Make the folder of a run; a legacy NPZ becomes its data.zarr first. Nothing is left where that fails.

    Parameters
    ----------
    check : raises where the run cannot be, before the folder appears.
    about : further facts for run.json.

    Raises
    ------
    TargetExistsError
        Something is at `output` (the hint says how to go on with it, where it is a run).
    NotFoundError, SourceError, IntegrityError, ConfigError
        See `locate`, `plan_ingest` and `open_record`.
    EnvironmentFault
        There is no space or no permission.
    """
    if output.exists() or output.is_symlink():
        is_run = (output / FACTS_NAME).is_file()
        hint = f"{resuming(kind, output)}, or another name" if is_run else "another name"
        raise TargetExistsError(f"{output}: exists already", code="target.exists", hint=hint)
    there = locate(source, catalog=catalog)
    if there.path.resolve() in output.resolve().parents:
        raise ConfigError(f"{output}: lies inside {there.path}, which would change it", code="target.in_source")
    with _faults_told(output), staged_folder(output) as stage:
        store = there.path.absolute()
        if there.kind != "store":
            store = stage / DATA_NAME
            logging.getLogger(__name__).info("%s: a legacy NPZ, converted to %s first", source, output / DATA_NAME)
            ingest(plan_ingest(there.path, said), store)
        record = open_record(store)
        check(record)
        provenance = record.attrs.get("provenance", {})
        facts = {
            "format": FORMAT,
            "kind": kind,
            "store": DATA_NAME if there.kind != "store" else str(store),
            "store_sha256": record.store_sha256,
            "source": provenance.get("source") or {"name": there.path.name, "sha256": None},
            "command": list(command),
            "versions": versions(),
            "host": host(),
            **(about or {}),
        }
        (stage / CONFIG_NAME).write_text(to_toml(config), encoding="utf-8")
        (stage / FACTS_NAME).write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (stage / CHECKPOINTS).mkdir()
    return open_run(output, kind=kind)


def open_run(path: Path, *, kind: str) -> RunFolder:
    """The run at `path`, its store proven to be the one that it was begun with.

    Raises
    ------
    NotFoundError
        Nothing is there, or its store is gone.
    SourceError
        It is no run of this kind, or one of another format.
    IntegrityError
        The store is another one by now.
    """
    if not path.exists():
        raise NotFoundError(f"{path}: no such run", code="run.not_found")
    try:
        facts = json.loads((path / FACTS_NAME).read_bytes())
        found, store, promised = facts["kind"], path / facts["store"], facts["store_sha256"]
        written = facts["format"]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise SourceError(f"{path}: no run of ours: {exc}", code="run.foreign") from exc
    if found != kind:
        raise SourceError(
            f"{path}: a run of {found}, not of {kind}", code="run.kind", hint=f"python -m pipeline.{found}"
        )
    if written != FORMAT:
        raise SourceError(
            f"{path}: a run of format {written!r}, and this version knows {FORMAT!r}", code="run.format",
            hint="go on with the version that began it (run.json names it), or begin a new run",
        )  # fmt: skip
    record = open_record(store)
    if record.store_sha256 != promised:
        raise IntegrityError(
            f"{store}: its store_sha256 is {record.store_sha256}, the run was begun with {promised}",
            code="run.other_store",
            hint="put the same store back, or begin a new run",
        )
    return RunFolder(path=path, kind=kind, facts=facts, store=store)


@contextmanager
def at_work(run: RunFolder) -> Iterator[None]:
    """Keep others away from a run, and say how to go on with it where it is stopped.

    Raises
    ------
    LockedError
        Another process is at work there.
    InterruptedRun, TerminatedRun
        A signal stopped the work inside.
    EnvironmentFault
        A reading process died; a disk is full or fails, and then the hint says how to go on.
    """
    again = resuming(run.kind, run.path)
    hint = f"go on with: {again}"
    with only_here(run.path / FACTS_NAME, place=run.path):
        sweep(run.path)
        try:
            with _faults_told(run.path, resume=again), faults_of_workers():
                yield
        except KeyboardInterrupt as exc:
            raise InterruptedRun(f"{run.path}: interrupted, state kept", code="interrupted", hint=hint) from exc
        except SystemExit as exc:
            raise TerminatedRun(f"{run.path}: terminated, state kept", code="terminated", hint=hint) from exc


@contextmanager
def _faults_told(place: Path, *, resume: str | None = None) -> Iterator[None]:
    """Make a fault of the machine of a system error, which may name no file, and say how to go on once it is mended."""
    try:
        yield
    except EnvironmentFault as exc:
        if exc.code not in UNWRITABLE or resume is None:
            raise
        raise EnvironmentFault(exc.message, code=exc.code, hint=f"{exc.hint}, then go on with: {resume}") from exc
    except PipelineError:
        raise
    except OSError as exc:
        raise environment_fault(exc, where=place, resume=resume) from exc


def publish(run: RunFolder, *names: str) -> None:
    """Move finished files from a run's checkpoints to their places, durably; none is ever half there."""
    for name in names:
        _sync(run.checkpoints / name)
        (run.checkpoints / name).replace(run.path / name)
    _sync(run.path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def versions() -> Mapping[str, str]:
    """What the numbers depend on."""
    return {
        "ptychozarr": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "torch", "zarr")},
    }


def host() -> Mapping[str, str]:
    """Where a run was begun; for people, no result depends on it."""
    return {"name": platform.node(), "system": platform.platform(), "cpu": _cpu(), "executable": sys.executable}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()

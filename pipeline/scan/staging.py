"""A file or folder that appears under its name whole and durable, or not at all."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pipeline.errors import ConfigError, LockedError, NotFoundError, TargetExistsError

_HERE: Final = -100  # AT_FDCWD: relative to the current folder, as everywhere
_NO_REPLACE: Final = 1
_EXCHANGE: Final = 2


@contextmanager
def staged_folder(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder beside `target` to write into; renamed to `target` at the end of a `with` that did not fail.

    Every file and folder is flushed to disk before the rename and the parent after it. A failure removes the
    folder and leaves `target` as it was.

    Raises
    ------
    TargetExistsError
        Something is at `target` and `overwrite` is false.
    """
    _require_free(target, overwrite=overwrite)
    stage = _beside(target, "partial")
    try:
        stage.mkdir()
        yield stage
        _sync_tree(stage)
        _publish(stage, target, overwrite=overwrite)
        _sync(target.parent)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def staged_file(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Like `staged_folder`, for one file: a path beside `target` that becomes `target`."""
    _require_free(target, overwrite=overwrite)
    stage = _beside(target, "partial")
    try:
        stage.touch(exist_ok=False)
        yield stage
        _sync(stage)
        _publish(stage, target, overwrite=overwrite)
        _sync(target.parent)
    finally:
        stage.unlink(missing_ok=True)


@contextmanager
def only_here(path: Path, *, place: Path) -> Iterator[None]:
    """Keep other processes away from a place, by a lock on the existing file `path` that ends with this process.

    Raises
    ------
    LockedError
        Another process is at work there.
    """
    with path.open("r+b") as file:
        try:
            # not flock: its lock would live on in child processes that outlive this one
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as exc:
            raise LockedError(f"{place}: another process is at work there", code="run.locked") from exc
        yield


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what a killed process had not finished writing in a folder, or of the one target of a name there."""
    for stale in folder.glob(".*.partial" if name is None else f".{glob.escape(name)}.*.partial"):
        if stale.is_dir() and not stale.is_symlink():
            shutil.rmtree(stale)
        else:
            stale.unlink()


def refuse_target(target: Path, *, suffix: str, source: Path) -> None:
    """Refuse a target that is not called NAME`suffix`, or lies inside the source, before any work.

    Raises
    ------
    ConfigError
    """
    if target.suffix != suffix:
        raise ConfigError(f"{target}: expected a name that ends in {suffix}", code="target.name")
    if source.resolve() in target.resolve().parents:
        raise ConfigError(f"{target}: lies inside {source}, which would change it", code="target.in_source")


def _beside(target: Path, kind: str) -> Path:
    """A free hidden name beside `target`; named before it exists, so that no signal can leave it unknown behind."""
    if not target.parent.is_dir():
        raise NotFoundError(f"{target.parent}: no such folder", code="target.no_folder", hint=f"mkdir {target.parent}")
    return target.with_name(f".{target.name}.{secrets.token_hex(8)}.{kind}")


def _require_free(target: Path, *, overwrite: bool) -> None:
    if not overwrite and (target.exists() or target.is_symlink()):
        raise _exists(target)


def _exists(target: Path) -> TargetExistsError:
    return TargetExistsError(f"{target}: exists already", code="target.exists", hint="another name, or --overwrite")


def _publish(stage: Path, target: Path, *, overwrite: bool) -> None:
    """Give `stage` the name `target` in one step; what was there is then at `stage`, to be removed.

    Linux renames without replacing, and exchanges two names, in one call each: nothing that appears meanwhile is
    lost, and no signal or power cut finds `target` missing. Elsewhere it is checked and renamed, in two steps.
    """
    try:
        if not _rename(stage, target, _NO_REPLACE):
            _require_free(target, overwrite=False)
            stage.rename(target)
    except FileExistsError as exc:
        if not overwrite:
            raise _exists(target) from exc
        if target.is_symlink() or target.is_dir() != stage.is_dir():
            raise TargetExistsError(
                f"{target}: is a link or of another kind, so it is not overwritten", code="target.foreign"
            ) from exc
        if not _rename(stage, target, _EXCHANGE):
            old = _beside(target, "old")
            target.rename(old)
            stage.rename(target)
            old.rename(stage)


def _rename(source: Path, target: Path, flags: int) -> bool:
    """Linux's renameat2; False where this system or file system has none.

    Raises
    ------
    OSError
        As os.rename, and FileExistsError with `_NO_REPLACE`.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(_HERE, os.fsencode(source), _HERE, os.fsencode(target), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(code, os.strerror(code), str(source), None, str(target))


def _sync_tree(root: Path) -> None:
    for folder, _, files in os.walk(root, topdown=False):
        for name in files:
            _sync(Path(folder) / name)
        _sync(Path(folder))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

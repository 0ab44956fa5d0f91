"""A file or folder that appears under its name whole and durable, or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import ConfigError, NotFoundError, TargetExistsError


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
        _require_free(target, overwrite=overwrite)
        _swap_in(stage, target)
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
        _require_free(target, overwrite=overwrite)
        if target.is_dir():
            raise TargetExistsError(f"{target}: is a folder", code="target.exists", hint="another name")
        stage.replace(target)
        _sync(target.parent)
    finally:
        stage.unlink(missing_ok=True)


def refuse_target(target: Path, *, suffix: str, source: Path) -> None:
    """Refuse a target that is not called NAME`suffix`, or is the source itself, before any work.

    Raises
    ------
    ConfigError
    """
    if target.suffix != suffix:
        raise ConfigError(f"{target}: expected a name that ends in {suffix}", code="target.name")
    if target.exists() and target.samefile(source):
        raise ConfigError(f"{target}: source and target are the same", code="target.is_source")


def _beside(target: Path, kind: str) -> Path:
    """A free hidden name beside `target`; named before it exists, so that no signal can leave it unknown behind."""
    if not target.parent.is_dir():
        raise NotFoundError(f"{target.parent}: no such folder", code="target.no_folder", hint=f"mkdir {target.parent}")
    return target.with_name(f".{target.name}.{secrets.token_hex(8)}.{kind}")


def _require_free(target: Path, *, overwrite: bool) -> None:
    if not overwrite and (target.exists() or target.is_symlink()):
        raise TargetExistsError(f"{target}: exists already", code="target.exists", hint="another name, or --overwrite")


def _swap_in(stage: Path, target: Path) -> None:
    if not target.exists():
        stage.rename(target)
        return
    old = _beside(target, "old")
    target.rename(old)
    try:
        stage.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


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

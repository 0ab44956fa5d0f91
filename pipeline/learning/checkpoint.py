"""States of a run on disk: each file whole or not there, tensors beside JSON facts, nothing that executes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.cli import NO_SPACE
from pipeline.errors import EnvironmentFault, IntegrityError

State = TypeVar("State")
Identity = Mapping[str, str | None]
"""What decides the bits of a state, by name: it is gone on with only where all of it is the same."""


UNWRITABLE: Final = ("checkpoint.unwritable", "environment.no_space")
"""Codes of a state that could not be written; once that is mended, the run goes on."""


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, identity: Identity) -> None:
    """Write tensors and JSON facts to `path`, replacing what was there in one step.

    Raises
    ------
    EnvironmentFault
        They cannot be written; what was at `path` is still there.
    """
    partial = path.with_name(f".{path.name}.partial")
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    written = {"facts": json.dumps(facts, sort_keys=True), "identity": json.dumps(dict(identity), sort_keys=True)}
    try:
        save_file(plain, partial, metadata={**written, "sha256": _digest(plain, written)})
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (SafetensorError, OSError) as exc:
        with contextlib.suppress(OSError):
            partial.unlink()
        full = exc.errno in NO_SPACE if isinstance(exc, OSError) else f"os error {errno.ENOSPC}" in str(exc)
        raise EnvironmentFault(
            f"{path}: a state cannot be written: {exc}",
            code=UNWRITABLE[full],
            hint="free some space" if full else "mend that",
        ) from exc


def load_checkpoint(path: Path, *, identity: Identity) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and facts of `path`; None where no such file is.

    Raises
    ------
    IntegrityError
        The file is damaged, or its identity is another one; names what differs.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # no mapping
            told = dict(file.metadata())
        promised = told.pop("sha256")
        found, facts = json.loads(told["identity"]), json.loads(told["facts"])
    except (SafetensorError, KeyError, TypeError, ValueError) as exc:
        raise _damaged(path, str(exc)) from exc
    if _digest(tensors, told) != promised:
        raise _damaged(path, "its SHA-256 is not the one that it was written with")
    differs = [name for name in identity.keys() | found.keys() if found.get(name) != identity.get(name)]
    if differs:
        raise IntegrityError(
            f"{path}: a state of another run: {', '.join(sorted(differs))} differ",
            code="checkpoint.other_run",
            hint="put back what was changed, or begin a new run",
        )
    return tensors, facts


def _damaged(path: Path, why: str) -> IntegrityError:
    return IntegrityError(
        f"{path}: damaged: {why}", code="checkpoint.damaged", hint="remove it; the run then goes on from before it"
    )


def _digest(tensors: Mapping[str, Tensor], written: Mapping[str, str]) -> str:
    """SHA-256 over the words and over name, type, shape and bytes of each tensor."""
    digest = hashlib.sha256(json.dumps(dict(written), sort_keys=True).encode("ascii"))
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def pack_state(state: object) -> tuple[dict[str, Tensor], dict[str, int]]:
    """A frozen state of tensors and integers as the two parts of a checkpoint."""
    values = {f.name: getattr(state, f.name) for f in fields(state)}  # type: ignore[arg-type]  # states are dataclasses
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in values.items() if not isinstance(value, Tensor)}


def unpack_state(kind: type[State], tensors: Mapping[str, Tensor], numbers: Mapping[str, int]) -> State:
    """The inverse of `pack_state`."""
    return kind(**tensors, **numbers)

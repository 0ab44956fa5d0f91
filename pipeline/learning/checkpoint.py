"""States of a run on disk: each file whole or not there, tensors beside JSON facts, nothing that executes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.errors import IntegrityError

State = TypeVar("State")


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and JSON facts to `path`, replacing what was there in one step."""
    partial = path.with_name(f".{path.name}.partial")
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(plain, partial, metadata={"facts": json.dumps(facts, sort_keys=True)})
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and facts of `path`; None where no such file is.

    Raises
    ------
    IntegrityError
        The file is damaged.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # no mapping
            return tensors, json.loads(file.metadata()["facts"])
    except (SafetensorError, KeyError, TypeError, ValueError) as exc:
        raise IntegrityError(
            f"{path}: damaged: {exc}", code="checkpoint.damaged", hint="remove it; the run then goes on from before it"
        ) from exc


def pack_state(state: object) -> tuple[dict[str, Tensor], dict[str, int]]:
    """A frozen state of tensors and integers as the two parts of a checkpoint."""
    values = {f.name: getattr(state, f.name) for f in fields(state)}  # type: ignore[arg-type]  # states are dataclasses
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in values.items() if not isinstance(value, Tensor)}


def unpack_state(kind: type[State], tensors: Mapping[str, Tensor], numbers: Mapping[str, int]) -> State:
    """The inverse of `pack_state`."""
    return kind(**tensors, **numbers)

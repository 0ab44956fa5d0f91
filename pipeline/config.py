"""Strict configuration: frozen dataclasses from TOML, unknown keys refused with a suggestion."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from pipeline.errors import ConfigError


def read_toml(path: Path, *, known: Iterable[str]) -> Mapping[str, object]:
    """The keys of a TOML file, all of them among `known`.

    Raises
    ------
    ConfigError
        The file is not TOML, or a key is unknown (the nearest known key is suggested).
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: not valid TOML: {exc}", code="config.toml") from exc
    names = sorted(known)
    for key in table:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(names)}"
            raise ConfigError(f"{path}: unknown key {key!r}", code="config.unknown_key", hint=hint)
    return table

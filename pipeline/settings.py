"""Settings as people write them, TOML files and dotted keys, to the frozen trees of `pipeline.config` and back."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from pipeline.config import TrainConfig, training_defaults, value_at
from pipeline.errors import ConfigError

Tree = TypeVar("Tree")


def read_toml(path: Path, *, known: Iterable[str]) -> Mapping[str, object]:
    """The keys of a TOML file, all of them among `known`.

    Raises
    ------
    ConfigError
        The file is not TOML, or a key is unknown (the nearest known key is suggested).
    """
    table = read_table(path)
    names = sorted(known)
    for key in table:
        refuse_unknown(key, names, where=f"{path}: ")
    return table


def read_table(path: Path) -> dict[str, Any]:
    """What a TOML file holds.

    Raises
    ------
    ConfigError
        There is none, or it is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise ConfigError(f"{path}: no such file", code="config.toml") from exc
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}", code="config.toml") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: not valid TOML: {exc}", code="config.toml") from exc


def refuse_unknown(key: str, names: Sequence[str], *, where: str = "") -> None:
    """Refuse a key that is not among the names; the nearest is suggested.

    Raises
    ------
    ConfigError
    """
    if key in names:
        return
    near = difflib.get_close_matches(key, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(names)}"
    raise ConfigError(f"{where}unknown key {key!r}", code="config.unknown_key", hint=hint, keys=(key,))


def resolve_config(kind: type[Tree], *, file: Path | None = None, settings: Mapping[str, object]) -> Tree:
    """The tree of defaults, then of a TOML file, then of dotted settings; None leaves what stood before.

    >>> resolve_config(ReconstructConfig, settings={"solver.iterations": 20}).solver.iterations
    20

    Raises
    ------
    ConfigError
        A key is unknown (the nearest is suggested), a value has another type or is out of range.
    """
    return _resolved(kind, {**_of_file(file), **_given(settings)})


def resolve_options(
    kind: type[Tree], *, file: Path | None, sets: Iterable[str], flags: Mapping[str, tuple[str, object]]
) -> Tree:
    """The tree of defaults, then of a TOML file, then of each `--set KEY=VALUE`, then of a command's own flags.

    Parameters
    ----------
    flags : dotted key -> (flag, value); None where it was not typed.

    Raises
    ------
    ConfigError
        See `resolve_config`. The message begins with the file, the `--set KEY` or the flag that is to blame.
    """
    own = {key: _Given(value, flag) for key, (flag, value) in flags.items() if value is not None}
    typed = {**{key: _Given(value, f"--set {key}") for key, value in map(parse_setting, sets)}, **own}
    return _resolved(kind, {**_without_other_length(_of_file(file), typed), **typed})


_LENGTHS: Final = ("fit.steps", "fit.epochs")


def _without_other_length(of_file: Mapping[str, _Given], typed: Mapping[str, _Given]) -> dict[str, _Given]:
    """What a file says, but how long to train where one of the two ways to say it was typed.

    Raises
    ------
    ConfigError
        Both were typed.
    """
    lengths = [key for key in _LENGTHS if key in typed]
    if len(lengths) > 1:
        raise ConfigError(
            f"{' and '.join(typed[key].said for key in lengths)}: a training has a number of steps or of epochs",
            code="config.length", hint="leave one of them out", keys=_LENGTHS,
        )  # fmt: skip
    return {key: value for key, value in of_file.items() if not (lengths and key in _LENGTHS)}


@dataclass(frozen=True, slots=True)
class _Given:
    """A value, and where it was said; "" where no person said it."""

    value: object
    said: str


def _of_file(file: Path | None) -> dict[str, _Given]:
    return {} if file is None else {key: _Given(value, str(file)) for key, value in flat(read_table(file)).items()}


def _given(settings: Mapping[str, object]) -> dict[str, _Given]:
    return {key: _Given(value, "") for key, value in settings.items() if value is not None}


def _defaults(kind: type[Tree], values: Mapping[str, Any]) -> Tree:
    """The tree before anything is given: of a training, that of its model; steps that are given replace epochs."""
    if kind is not TrainConfig:
        return kind()
    chosen = training_defaults(values.get("model", "canvas"), gridsize=values.get("stream.gridsize", 1))
    if "fit.steps" in values:
        chosen = replace(chosen, fit=replace(chosen.fit, epochs=None))
    return typing.cast("Tree", chosen)


def _resolved(kind: type[Tree], given: Mapping[str, _Given]) -> Tree:
    known = dict(_leaves(kind))
    try:
        for key in given:
            refuse_unknown(key, sorted(known), where="")
        values = {key: _typed(key, one.value, known[key]) for key, one in given.items()}
        return _changed(_defaults(kind, values), values)
    except ConfigError as exc:
        said = dict.fromkeys(given[key].said for key in exc.keys if key in given and given[key].said)
        if not said:
            raise
        message = f"{' and '.join(said)}: {exc.message}"
        raise ConfigError(message, code=exc.code, hint=exc.hint, keys=exc.keys) from exc


def restore_config(kind: type[Tree], table: Mapping[str, Any]) -> Tree:
    """The tree of a table that was made of one, `tomllib.loads(to_toml(...))`.

    Raises
    ------
    ConfigError
        See `resolve_config`.
    """
    return resolve_config(kind, settings=flat(table))


def parse_setting(text: str) -> tuple[str, object]:
    """`solver.iterations=20` as its dotted key and TOML value; a value that is no TOML is taken as text.

    Raises
    ------
    ConfigError
        There is no "=".
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text}: expected key=value", code="config.setting")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def to_toml(config: object) -> str:
    """The tree as TOML that `resolve_config` reads back; what is None is left out."""
    leaves = [(key, value_at(config, key)) for key, _ in _leaves(type(config))]
    lines, table = [], ""
    for key, value in leaves:
        place, _, name = key.rpartition(".")
        if value is None:
            continue
        if place != table:
            lines += ["", f"[{place}]"]
            table = place
        lines.append(f"{name} = {_toml_value(value)}")
    return "\n".join(lines).lstrip("\n") + "\n"


def _toml_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value)


def _leaves(kind: type[Any], place: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted key and type of each value of a tree, those of the root first, so that TOML can hold them."""
    hints = typing.get_type_hints(kind)
    fields = [f for f in dataclasses.fields(kind) if f.metadata.get("setting", True)]
    branches = [f.name for f in fields if dataclasses.is_dataclass(hints[f.name])]
    for f in fields:
        if f.name not in branches:
            yield place + f.name, hints[f.name]
    for name in branches:
        yield from _leaves(hints[name], f"{place}{name}.")


def flat(table: Mapping[str, Any], place: str = "") -> dict[str, object]:
    """The values of nested tables under dotted keys."""
    found: dict[str, object] = {}
    for name, value in table.items():
        found |= flat(value, f"{place}{name}.") if isinstance(value, Mapping) else {place + name: value}
    return found


def _typed(key: str, value: object, hint: Any) -> object:
    """The value as its leaf wants it: integers may stand for floats, nothing else for anything else."""
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)  # the second where a Literal may be None
    options = typing.get_args(hint) if union else (hint,)
    for option in options:
        if typing.get_origin(option) is Literal and value in typing.get_args(option):
            return value
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if option in (int, str, bool) and type(value) is option:
            return value
    wanted = [
        " or ".join(map(str, typing.get_args(o))) if typing.get_origin(o) is Literal else o.__name__
        for o in options
        if o is not types.NoneType
    ]
    raise ConfigError(f"{key} = {value!r}; expected {' or '.join(wanted)}", code="config.type", keys=(key,))


def _changed(base: Tree, values: Mapping[str, object]) -> Tree:
    """The tree with the values at these dotted keys in place of its own."""
    changes = {key: value for key, value in values.items() if "." not in key}
    for branch in dict.fromkeys(key.partition(".")[0] for key in values if "." in key):
        inside = {k.removeprefix(f"{branch}."): v for k, v in values.items() if k.startswith(f"{branch}.")}
        changes[branch] = _changed(getattr(base, branch), inside)
    return dataclasses.replace(base, **changes)  # type: ignore[type-var]  # every tree here is a dataclass

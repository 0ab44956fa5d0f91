"""What a user may say about a legacy file: the options that settle what its bytes leave open. No numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from pipeline.errors import ConfigError
from pipeline.settings import read_toml

STACK_KEYS: Final = ("diffraction", "diff3d")
ORIGINS: Final = ("n/2", "n/2-0.5", "corner")
"""What a source's coordinate points at: pixel n/2 of the frame's window, its exact middle, or its first pixel."""

MIN_PIXEL_M: Final = 1e-13
MAX_PIXEL_M: Final = 1e-3
"""No object pixel of a ptychograph lies outside; a 20 was meant as nanometres."""

CHOICES: Final = {
    "key": STACK_KEYS,
    "axes": ("fyx", "yxf", "yfx"),
    "quantity": ("counts", "intensity", "amplitude"),
    "contract": ("data-001",),
    "positions": ("pixel", "metre"),
    "position_origin": ORIGINS,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Declaration:
    """What the user says about a file; None says nothing."""

    key: str | None = None
    axes: str | None = None
    quantity: str | None = None
    contract: str | None = None
    positions: str | None = None
    pixel_size_m: float | None = None
    position_origin: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(allowed)}", code="config.choice")
        if self.pixel_size_m is not None and not MIN_PIXEL_M <= self.pixel_size_m <= MAX_PIXEL_M:
            raise ConfigError(
                f"pixel_size_m is not between {MIN_PIXEL_M} and {MAX_PIXEL_M} metres",
                code="config.range",
                hint="20 nm are --pixel-size-m 20e-9",
            )

    def given(self) -> dict[str, object]:
        """What was said, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}


def declared_for(path: Path, options: Declaration) -> Declaration:
    """The options, completed by `NAME.toml` beside `NAME.npz` where there is one, and free of contradiction.

    An option wins over the file.

    Raises
    ------
    ConfigError
        An unknown key, a value of another type or out of range, or two that exclude each other.
    """
    beside = path.with_suffix(".toml")
    table = _typed(beside, read_toml(beside, known=[f.name for f in fields(Declaration)])) if beside.is_file() else {}
    if options.quantity is not None or options.contract is not None:  # one question, so the option answers all of it
        table = {name: value for name, value in table.items() if name not in ("quantity", "contract")}
    said = Declaration(**{**table, **options.given()})  # type: ignore[arg-type]  # names and types are checked
    if said.positions == "metre" and said.pixel_size_m is None:
        raise ConfigError(
            "positions in metres need the object's pixel size", code="config.pixel_size", hint="--pixel-size-m"
        )
    if said.contract is not None and said.quantity not in (None, "amplitude"):
        raise ConfigError(
            f"contract {said.contract} says that float means amplitude, quantity says {said.quantity}",
            code="config.contradiction",
            hint="one of the two",
        )
    return said


def _typed(path: Path, table: Mapping[str, object]) -> Mapping[str, object]:
    for name, value in table.items():
        wanted: type | tuple[type, ...] = (int, float) if name == "pixel_size_m" else str
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise ConfigError(f"{path}: {name} is {value!r:.40}", code="config.type")
    return table

"""Where a study keeps what: names of folders and files, ours and those of the system before it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pipeline.errors import NotFoundError, SourceError
from pipeline.scan.record import is_store

SPLITS: Final = ("train", "test")


def dose_name(dose: float) -> str:
    """The folder of a dose: dose_1000."""
    return f"dose_{int(dose)}"


def dose_of(folder: Path) -> int | None:
    """The dose whose folder this is by its name; None where it is none's."""
    digits = folder.name.removeprefix("dose_")
    return int(digits) if folder.name.startswith("dose_") and digits.isascii() and digits.isdigit() else None


def require_root(root: Path, *, what: str) -> None:
    """Refuse a root that is no folder.

    Raises
    ------
    NotFoundError
    """
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing there"
        raise NotFoundError(f"{root}: {found}; expected the folder of {what}", code="study.root")


def require_doses(root: Path) -> list[int]:
    """The doses whose folders lie in a phase C root, ascending.

    Raises
    ------
    NotFoundError
        There is none.
    """
    doses = sorted(dose for folder in root.iterdir() if folder.is_dir() and (dose := dose_of(folder)) is not None)
    if not doses:
        raise NotFoundError(
            f"{root}: no folder dose_N", code="study.root",
            hint="the root that `study generate` made; `study overlap` takes the folder of one dose with --s-img SHARE",
        )  # fmt: skip
    return doses


def dose_data(folder: Path, split: str) -> Path | None:
    """The frames of a dose's folder that are for training or testing: a store, else a legacy NPZ; None without both.

    Raises
    ------
    SourceError
        Several files could be it.
    """
    return _first(folder, f"patched_{split}") or _globbed(folder, split)


def view_data(root: Path, dose: float, view: str, split: str) -> Path | None:
    """The frames of a view, wherever one of the layouts puts them; None where there are none."""
    folder = root / dose_name(dose)
    return _first(folder / view, f"{view}_{split}") or _first(folder / view, split) or _first(folder, f"{view}_{split}")


def _first(folder: Path, stem: str) -> Path | None:
    store, npz = folder / f"{stem}.zarr", folder / f"{stem}.npz"
    if is_store(store):
        return store
    return npz if npz.is_file() else None


def _globbed(folder: Path, split: str) -> Path | None:
    """The only file whose name ends in the split, as later versions of the old system looked for it."""
    found = sorted(path for path in folder.glob(f"*{split}.npz") if path.is_file())
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise SourceError(f"{folder}: which is for {split}ing, {names}?", code="study.ambiguous",
                          hint=f"call it patched_{split}.npz")  # fmt: skip
    return found[0] if found else None

"""Phase C: a base scan again at each dose, with what every frame sees of the object, split in two and proven."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DivergedError, IntegrityError, PipelineError, PlanError, TargetExistsError
from pipeline.scan.audit_study import ENTRY_SEAL, GENERATED
from pipeline.scan.declaration import Declaration
from pipeline.scan.npz import sha256_file
from pipeline.scan.provenance import library_versions
from pipeline.scan.record import StoreRecord, open_record
from pipeline.scan.sealed import read_document, read_sealed, sealed, spelled, write_document
from pipeline.scan.staging import sweep
from pipeline.scan.store import write_scan
from pipeline.simulate.recipe import recipe_named
from pipeline.simulate.scan import Simulation, plan_resimulation, plan_simulation
from pipeline.simulate.write import Dialect, dataset_of, write_legacy
from pipeline.study.design import DESIGN_NAME, Split, StudyDesign, design_from
from pipeline.study.folder import store_there
from pipeline.study.places import SPLITS, dose_name
from pipeline.study.spread import Crew, spread

BUILT_IN: Final = "lines"
"""The recipe whose object, probe and positions a study without a base has."""

_DOSE_ERROR: Final = 0.01
_OLD: Final = Dialect(quantity="scaled-amplitude", dtype="float32", deflated=False, labelled=True)
"""How the old system spelled its frames: `diffraction`, amplitude of mean energy (N/2)^2, and patches in `Y`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DoseTask:
    """One dose of a study to make below `root`. base : a scan to simulate anew; None for the built-in one."""

    dose: float
    root: Path
    base: Path | None
    said: Declaration
    design: StudyDesign
    legacy_npz: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """A dose that is there: its entry in the manifest, whether anything was written, and what to know of it."""

    entry: Mapping[str, Any]
    written: bool
    notes: tuple[str, ...]


def keep_design(root: Path, design: StudyDesign) -> None:
    """Leave the design in the root folder, where later stages find it, and a manifest beside it.

    Raises
    ------
    TargetExistsError
        There are doses that were made after another design.
    IntegrityError
        The manifest that is there is not as it was written.
    """
    path = root / DESIGN_NAME
    made = _entries(root / GENERATED)
    same = path.exists() and design_from(read_document(path), where=f"{path}: ") == design
    if made and not same:
        raise TargetExistsError(
            f"{path}: the study in {root} has another design", code="study.other_design",
            hint="another --output-root; settings of a training alone can be changed with `study train --design FILE`",
        )  # fmt: skip
    if not same:
        write_document(path, design.document())
    write_document(root / GENERATED, made)


def generate(tasks: list[DoseTask], *, crew: Crew) -> Iterator[tuple[DoseTask, Made | PipelineError]]:
    """Each dose with what became of it, as they come in; the manifest tells of those that are there.

    The caller is alone at work in the root.
    """
    for task, made in spread(tasks, make_dose, crew=crew):
        if isinstance(made, Made):
            _record(task.root / GENERATED, dose_name(task.dose), made.entry)
        yield task, made


def _record(path: Path, name: str, entry: Mapping[str, Any]) -> None:
    """Let the manifest tell of a dose; files of the old layout that an earlier command left are not forgotten."""
    before = _entries(path)
    then = before.get(name, {})
    if entry["legacy_npz"] is None and then == sealed({**entry, "legacy_npz": then.get("legacy_npz")}, key=ENTRY_SEAL):
        return
    if then != entry:
        write_document(path, {**before, name: entry})


def _entries(path: Path) -> dict[str, Any]:
    """The doses that the manifest tells of, each as it was sealed."""
    entries = read_sealed(path, key=None)
    for name, entry in entries.items():
        if not isinstance(entry, dict) or entry != sealed(entry, key=ENTRY_SEAL) or name != dose_name(entry["dose"]):
            raise IntegrityError(
                f"{path}: {name}: its content is not what its {ENTRY_SEAL} says, so nothing is added to it",
                code="study.document", hint="look what changed; moved away, it is written anew",
            )  # fmt: skip
    return entries


def in_words(task: DoseTask, made: Made | PipelineError) -> str:
    """A line on what became of a dose."""
    if isinstance(made, PipelineError):
        return f"{dose_name(task.dose)}: failed: {made.message}"
    entry = made.entry
    return (
        f"{entry['intermediate_dir']}: {entry['n_train']} train and {entry['n_test']} test frames, "
        f"{entry['photons_per_frame']['measured']:.6g} photons a frame, {'written' if made.written else 'unchanged'}"
    )


def make_dose(task: DoseTask) -> Made:
    """Make the stores of a dose, or find that they are there.

    Raises
    ------
    SourceError, ConfigError
        See `plan_resimulation`.
    PlanError
        One half of the split cannot fill a group.
    TargetExistsError, IntegrityError
        Something else is there, or what is there is damaged.
    DivergedError
        The photons that were drawn are not those asked for.
    """
    folder = task.root / dose_name(task.dose)
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    whole, base = _simulation(task)
    parts, split = _halves(whole, task.design)
    written, records, files = False, dict[str, StoreRecord](), dict[str, Any]()
    for name, part in parts.items():
        provenance = {"simulation": dict(part.about), "split": {**split, "part": name}, "versions": library_versions()}
        records[name], new = _store(part, folder / f"patched_{name}.zarr", provenance)
        written |= new
        if task.legacy_npz:
            files[name], new = _legacy(part, folder / f"patched_{name}.npz", task.root)
            written |= new
    entry = {
        "dose": task.dose,
        "intermediate_dir": dose_name(task.dose),
        **{name: f"{dose_name(task.dose)}/patched_{name}.zarr" for name in SPLITS},
        **{f"{name}_store_sha256": record.store_sha256 for name, record in records.items()},
        **{f"n_{name}": len(part.frames) for name, part in parts.items()},
        "photons_per_frame": _photons(task.dose, records, parts),
        "split": split,
        "seed": task.design.seeds.simulation,
        "base": base,
        "legacy_npz": files or None,
        "design_sha256": hashlib.sha256(spelled(task.design.document())).hexdigest(),
    }
    return Made(entry=sealed(entry, key=ENTRY_SEAL), written=written, notes=tuple(_notes(whole)))


def _simulation(task: DoseTask) -> tuple[Simulation, Mapping[str, Any]]:
    """The scan of a dose, and what its manifest says of where it comes from."""
    seed = task.design.seeds.simulation
    if task.base is None:
        recipe = recipe_named(BUILT_IN)
        return plan_simulation(recipe, seed=seed, photons_per_frame=task.dose), {"recipe": recipe.name}
    whole = plan_resimulation(task.base, task.said, seed=seed, photons_per_frame=task.dose)
    kind, _, sha256 = str(whole.about["base"]).partition(" ")
    return whole, {"name": task.base.name, "kind": kind, "sha256": sha256}


def _halves(whole: Simulation, design: StudyDesign) -> tuple[dict[str, Simulation], dict[str, Any]]:
    """Both halves of a scan, and how it was cut."""
    threshold, first = split_frames(whole.geometry.positions, design.split)
    parts = {"train": replace(whole, frames=whole.frames[first]), "test": replace(whole, frames=whole.frames[~first])}
    least = max(design.gridsizes) ** 2
    for name, part in parts.items():
        if len(part.frames) < least:
            raise PlanError(
                f"{len(part.frames)} of {len(whole.frames)} frames are for {name}ing, split at {design.split.axis} = "
                f"{threshold:g}; a group has {least}",
                code="study.split",
                hint="split.axis or split.fraction of the design, or a base with more frames",
            )
    return parts, {"axis": design.split.axis, "fraction": design.split.fraction, "threshold": threshold}


def split_frames(positions: NDArray[np.float64], split: Split) -> tuple[float, NDArray[np.bool_]]:
    """Where the coordinates (n, 2) (y, x) are cut, pixels, and which frames lie below, for training. (n,) bool."""
    along = positions[:, 0 if split.axis == "y" else 1]
    threshold = float(along.min() + split.fraction * (along.max() - along.min()))
    return threshold, along < threshold


def _store(part: Simulation, target: Path, provenance: Mapping[str, Any]) -> tuple[StoreRecord, bool]:
    """The store of a part, and whether it had to be written."""
    there = store_there(target, provenance)
    if there is not None:
        return there, False
    write_scan(dataset_of(part, provenance=provenance, labelled=True), target)
    return open_record(target), True


def _legacy(part: Simulation, target: Path, root: Path) -> tuple[Mapping[str, Any], bool]:
    """The same as a file of the old layout, and what the manifest says of it."""
    new = not target.exists()
    made = target if new else target.with_name(f".{target.name}.again.partial")
    try:
        write_legacy(part, made, _OLD, overwrite=not new)
        sha256, size = sha256_file(made), made.stat().st_size
        if not new and sha256_file(target) != sha256:
            raise TargetExistsError(
                f"{target}: exists already, with other content", code="target.exists", hint="another --output-root"
            )
    finally:
        if not new:
            made.unlink(missing_ok=True)
    return {"path": str(target.relative_to(root).as_posix()), "sha256": sha256, "bytes": size}, new


def _photons(dose: float, records: Mapping[str, StoreRecord], parts: Mapping[str, Simulation]) -> dict[str, float]:
    """Photons per frame, declared and as counted, of all frames and of each half."""
    each = {name: float(record.attrs["photons_per_frame"]["measured"]) for name, record in records.items()}
    n_frames = {name: len(part.frames) for name, part in parts.items()}
    total = sum(each[name] * n_frames[name] for name in each)
    measured = total / sum(n_frames.values())
    allowed = max(_DOSE_ERROR, 5 / math.sqrt(max(total, 1.0)))
    if abs(measured / dose - 1) > allowed:
        raise DivergedError(
            f"frames hold {measured:g} photons on average, and {dose:g} were asked for", code="study.dose"
        )
    return {"declared": dose, "measured": measured, **each}


def _notes(whole: Simulation) -> Iterator[str]:
    obj, side = whole.object, whole.shape[1]
    corner = whole.positions - side // 2
    over = np.any((corner < 0) | (corner + side > obj.shape), axis=1)
    if np.ptp(obj.real) == 0 == np.ptp(obj.imag):
        yield "the object of the base is the same everywhere, so its frames tell nothing"
    if over.any():
        yield f"{np.count_nonzero(over)} of {len(over)} frames look beyond the object, where nothing lets light through"

"""How far a study has come, from what is on disk alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pipeline.errors import NotFoundError
from pipeline.scan.audit_run import CHECKPOINTS, is_run
from pipeline.scan.audit_study import GENERATED, TRAINED, VIEWED, manifests_below
from pipeline.scan.bundle import BUNDLE_NAME
from pipeline.scan.record import is_store
from pipeline.scan.sealed import read_document
from pipeline.study.design import design_for
from pipeline.study.jobs import Filters, Job, slots
from pipeline.study.places import SPLITS, dose_name

STATES: Final = ("done", "begun", "failed", "skipped", "left")


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One thing to make: of a stage, by its name, and its state, one of `STATES`; `why` it failed or was skipped."""

    stage: str
    name: str
    state: str
    why: str | None = None


def status_of(root: Path) -> list[Step]:
    """Every step of the studies whose manifests lie below `root`, in the order of the stages.

    Raises
    ------
    NotFoundError
        There is no manifest.
    """
    if not root.is_dir():
        raise NotFoundError(f"{root}: no such folder", code="study.not_found")
    manifests = manifests_below(root)
    if not manifests:
        raise NotFoundError(f"{root}: no manifest of a study", code="study.not_found")
    stages = {GENERATED: _generated, VIEWED: _viewed, TRAINED: _trained}
    found = sorted(manifests, key=lambda path: (list(stages).index(path.name), path))
    return [step for path in found for step in stages[path.name](path)]


def _generated(path: Path) -> Iterator[Step]:
    design = design_for(path.parent, None)
    for dose in design.doses:
        folder = path.parent / dose_name(dose)
        there = [is_store(folder / f"patched_{split}.zarr") for split in SPLITS]
        yield Step(
            stage="generate", name=folder.name, state="done" if all(there) else "begun" if any(there) else "left"
        )


def _viewed(path: Path) -> Iterator[Step]:
    document = read_document(path)
    for view in document["views"]:
        there = all(is_store(path.parent / store["path"]) for store in view["stores"].values())
        yield Step(stage="overlap", name=_view_name(view), state="done" if there else "left")
    for view in document["skipped_views"]:
        yield Step(stage="overlap", name=_view_name(view), state="skipped", why=view["reason"])


def _view_name(view: Mapping[str, Any]) -> str:
    return view["view"] if view["dose"] is None else f"{dose_name(view['dose'])}/{view['view']}"


def _trained(path: Path) -> Iterator[Step]:
    document = read_document(path)
    failed = {_job_name(job): job["result"]["error"] for job in document["jobs"] if _failed(job)}
    skipped = {(skip["dose"], skip["view"], skip["gridsize"]): skip["reason"] for skip in document["skipped_views"]}
    for dose, view, gridsize in slots(design_for(Path(document["phase_c_root"]), None), Filters()):
        folder = path.parent / dose_name(dose) / view / f"gs{gridsize}"
        name = folder.relative_to(path.parent).as_posix()
        state, why = "left", None
        if (folder / BUNDLE_NAME).is_file():
            state = "done"
        elif name in failed:
            state, why = "failed", failed[name]
        elif is_run(folder) and (folder / CHECKPOINTS).is_dir():
            state = "begun"
        elif (dose, view, gridsize) in skipped:
            state, why = "skipped", skipped[dose, view, gridsize]
        yield Step(stage="train", name=name, state=state, why=why)


def _failed(job: Mapping[str, Any]) -> bool:
    return bool(job["result"].get("status") == "failed")


def _job_name(job: Mapping[str, Any]) -> str:
    return Job(
        dose=job["dose"], view=job["view"], gridsize=job["gridsize"], train_data=Path(), test_data=None
    ).name  # fmt: skip

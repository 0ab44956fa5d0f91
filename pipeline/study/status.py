"""How far a study has come, from what is on disk alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pipeline.errors import IntegrityError, NotFoundError, PipelineError
from pipeline.scan.audit_run import CHECKPOINTS, is_run
from pipeline.scan.audit_study import GENERATED, TRAINED, VIEWED, job_folder, manifests_below
from pipeline.scan.bundle import BUNDLE_NAME
from pipeline.scan.record import is_store
from pipeline.scan.sealed import read_document
from pipeline.study.design import design_for, design_from
from pipeline.study.jobs import Filters, slots
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
    IntegrityError
        A manifest does not hold what it should.
    """
    if not root.is_dir():
        raise NotFoundError(f"{root}: no such folder", code="study.not_found")
    manifests = manifests_below(root)
    if not manifests:
        raise NotFoundError(f"{root}: no manifest of a study", code="study.not_found")
    stages = {GENERATED: _generated, VIEWED: _viewed, TRAINED: _trained}
    found = sorted(manifests, key=lambda path: (list(stages).index(path.name), path))
    steps = list[Step]()
    for path in found:
        try:
            steps += stages[path.name](path)
        except PipelineError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as exc:
            raise IntegrityError(f"{path}: not as it was written: {exc!r}", code="study.document") from exc
    return steps


def _generated(path: Path) -> Iterator[Step]:
    design = design_for(path.parent, None)
    read_document(path)
    for dose in design.doses:
        folder = path.parent / dose_name(dose)
        there = [is_store(folder / f"patched_{split}.zarr") for split in SPLITS]
        yield Step(
            stage="generate", name=folder.name, state="done" if all(there) else "begun" if any(there) else "left"
        )


def _viewed(path: Path) -> Iterator[Step]:
    document = read_document(path)
    failed = {_view_name(view): str(view["error"]) for view in document["failed_views"]}
    for view in document["views"]:
        there = all(is_store(path.parent / store["path"]) for store in view["stores"].values())
        if _view_name(view) not in failed:
            yield Step(stage="overlap", name=_view_name(view), state="done" if there else "left")
    for name, why in failed.items():
        yield Step(stage="overlap", name=name, state="failed", why=why)
    for view in document["skipped_views"]:
        if _view_name(view) not in failed:
            yield Step(stage="overlap", name=_view_name(view), state="skipped", why=view["reason"])
    told = {_view_name(view) for key in ("views", "failed_views", "skipped_views") for view in document[key]}
    for view in document["wanted_views"]:
        if _view_name(view) not in told:
            yield Step(stage="overlap", name=_view_name(view), state="left")


def _view_name(view: Mapping[str, Any]) -> str:
    return str(view["view"]) if view["dose"] is None else f"{dose_name(view['dose'])}/{view['view']}"


def _trained(path: Path) -> Iterator[Step]:
    document = read_document(path)
    jobs = {} if document["dry_run"] else {job_folder(job): job["result"] for job in document["jobs"]}
    skipped = {job_folder(skip): skip["reason"] for skip in document["skipped_views"]}
    wanted = [
        job_folder({"dose": dose, "view": view, "gridsize": gridsize})
        for dose, view, gridsize in slots(design_from(document["design"]), Filters())
    ]
    for name in dict.fromkeys([*wanted, *jobs]):
        folder, result = path.parent / name, jobs.get(name, {})
        state, why = "left", None
        if result.get("status") == "failed":
            state, why = "failed", result["error"]
        elif (folder / BUNDLE_NAME).is_file():
            state = "done"
        elif is_run(folder) and (folder / CHECKPOINTS).is_dir():
            state = "begun"
        elif name in skipped:
            state, why = "skipped", skipped[name]
        yield Step(stage="train", name=name, state=state, why=why)

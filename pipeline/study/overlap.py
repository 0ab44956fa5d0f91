"""Phase D: for each dose the views that a network gets to see, with how much their frames overlap."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import NotFoundError, PipelineError, TargetExistsError
from pipeline.scan.audit_study import VIEWED
from pipeline.scan.chunks import read_all
from pipeline.scan.declaration import Declaration
from pipeline.scan.ingest import data_001, ingest, plan_ingest
from pipeline.scan.provenance import library_versions
from pipeline.scan.record import StoreRecord, is_store, open_record
from pipeline.scan.sealed import read_document, read_sealed, sealed, spelled, write_document
from pipeline.scan.staging import sweep
from pipeline.scan.store import open_stored, write_scan
from pipeline.study.design import StudyDesign, View
from pipeline.study.folder import store_there
from pipeline.study.places import SPLITS, dose_data, dose_name, dose_of, require_doses
from pipeline.study.spread import Crew, spread
from pipeline.study.views import OverlapPlan, drawn_view, overlap_metrics, spaced_view

BUNDLE_NAME: Final = "metrics_bundle.json"

Rule = Literal["fraction", "spacing"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """How views are chosen and measured. probe_diameter_px : None for that of the design, in units of the frame's side.

    s_img : in place of each view's own.
    """

    rule: Rule
    gridsize: int
    n_groups: int
    neighbor_count: int
    seed: int
    probe_diameter_px: float | None = None
    s_img: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewTask:
    """One view of one dose to make: from `sources`, split -> store or NPZ, into `folder`, called `stem`split.zarr."""

    dose: int | None
    view: View
    sources: Mapping[str, Path]
    root: Path
    folder: Path
    stem: str
    measure: Measure
    spacing_px: float
    diameter: float

    @property
    def name(self) -> str:
        """What people call it: dose_1000/dense."""
        return self.view.name if not self.stem else f"{dose_name(self.dose or 0)}/{self.view.name}"

    def place(self, split: str) -> Path:
        """Where the frames for training or testing go."""
        return self.folder / f"{self.stem}{split}.zarr"


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """A view that is there, or was left out: its entry in the manifest, and whether anything was written.

    reason : why it was left out; None where it was not.
    """

    entry: Mapping[str, Any]
    written: bool
    reason: str | None = None
    metrics: Mapping[str, Mapping[str, Any]] | None = None


def plan_views(root: Path, output: Path, design: StudyDesign, measure: Measure) -> list[ViewTask]:
    """What is to be made of a phase C root, or of the one folder of a dose where a share of frames is asked for.

    Raises
    ------
    NotFoundError
        There is no folder of a dose, or one lacks frames for training or testing.
    """
    if measure.s_img is not None:
        view = View(name=root.name, overlap=0.0, s_img=measure.s_img)
        return [_task(dose_of(root), view, root, output, output, "", design, measure)]
    return [
        _task(dose, view, root / dose_name(dose), output, output / dose_name(dose) / view.name, f"{view.name}_",
              design, measure)
        for dose in require_doses(root) for view in design.views
    ]  # fmt: skip


def _task(
    dose: int | None, view: View, source: Path, root: Path, folder: Path, stem: str, design: StudyDesign,
    measure: Measure,
) -> ViewTask:  # fmt: skip
    sources = {split: dose_data(source, split) for split in SPLITS}
    for split, path in sources.items():
        if path is None:
            raise NotFoundError(
                f"{source}: no frames for {split}ing; expected patched_{split}.zarr or patched_{split}.npz",
                code="study.no_frames",
            )
    return ViewTask(
        dose=dose, view=view, sources={split: path for split, path in sources.items() if path is not None}, root=root,
        folder=folder, stem=stem, measure=measure, spacing_px=design.spacing_px(view),
        diameter=design.metrics.probe_diameter,
    )  # fmt: skip


def make_views(
    tasks: Sequence[ViewTask], root: Path, *, phase_c_root: Path, crew: Crew
) -> Iterator[tuple[ViewTask, Seen | PipelineError]]:
    """Each view with what became of it, as they come in. After each the manifest of the root is written, whole.

    Of a view that failed it keeps what was there before. The caller is alone at work in the root.

    Raises
    ------
    IntegrityError
        The manifest that is there is not as it was written.
    """
    before = read_sealed(root / VIEWED)
    states: dict[str, dict[tuple[int, str], Mapping[str, Any]]] = {
        name: {_key(entry): entry for entry in before.get(name, ())} for name in ("views", "skipped_views")
    }
    states["failed_views"] = {}
    wanted = [{"dose": task.dose, "view": task.view.name} for task in tasks]
    wanted += [entry for entry in before.get("wanted_views", ()) if entry not in wanted]

    def write() -> None:
        told = {name: [entries[key] for key in sorted(entries)] for name, entries in states.items()}
        manifest = {
            "phase_c_root": str(phase_c_root), "wanted_views": sorted(wanted, key=_key), **told,
            "skipped_count": len(told["skipped_views"]),
        }  # fmt: skip
        write_document(root / VIEWED, sealed(manifest))

    write()
    for task, seen in spread(tasks, make_view, crew=crew):
        named = {"dose": task.dose, "view": task.view.name}
        if isinstance(seen, PipelineError):
            states["failed_views"][_key(named)] = {**named, "error": seen.message, "error_code": seen.code}
        else:
            there, gone = ("views", "skipped_views") if seen.reason is None else ("skipped_views", "views")
            states[there][_key(named)] = seen.entry
            states[gone].pop(_key(named), None)
        write()
        yield task, seen


def _key(entry: Mapping[str, Any]) -> tuple[int, str]:
    return entry["dose"] or 0, entry["view"]


def make_view(task: ViewTask) -> Seen:
    """Make the stores of a view and measure its overlap, or find that all is there.

    Raises
    ------
    SourceError, IntegrityError
        The frames cannot be read with certainty, or are damaged.
    TargetExistsError
        Something else is there.
    """
    task.folder.mkdir(parents=True, exist_ok=True)
    sweep(task.folder)
    named: dict[str, Any] = {"dose": task.dose, "view": task.view.name}
    with _stores(task) as opened:
        positions = {split: _positions(record) for split, record in opened.items()}
        kept = {split: _kept(task, there) for split, there in positions.items()}
        reason = next(filter(None, (_too_few(task, split, kept[split], positions[split]) for split in SPLITS)), None)
        if reason is not None:
            for split in SPLITS:
                if task.place(split).exists():
                    raise TargetExistsError(
                        f"{task.place(split)}: is there, and {reason}",
                        code="target.exists",
                        hint="another --output-root",
                    )
            return Seen(entry={**named, "reason": reason}, written=False, reason=reason)
        made = {split: _store(task, split, record, kept[split]) for split, record in opened.items()}
        metrics = {
            split: overlap_metrics(
                positions[split][kept[split]], _plan(task, record), n_images_total=len(positions[split])
            )
            for split, record in opened.items()
        }
        sources = {split: _source(task.sources[split], record) for split, record in opened.items()}
    stores = {
        split: {
            "path": task.place(split).relative_to(task.root).as_posix(),
            "store_sha256": sha256,
            "n_frames": len(kept[split]),
        }
        for split, (sha256, _) in made.items()
    }
    documents = {**{f"{split}_metrics.json": metrics[split] for split in SPLITS}, BUNDLE_NAME: metrics}
    new = [new for _, new in made.values()] + [_written(task.folder / name, one) for name, one in documents.items()]
    files = {name: _promise(task, name, document) for name, document in documents.items()}
    entry = {**named, "measure": asdict(task.measure), "stores": stores, "sources": sources, "metrics": files}
    return Seen(entry=entry, written=any(new), metrics=metrics)


def _too_few(task: ViewTask, split: str, kept: NDArray[np.int64], positions: NDArray[np.float64]) -> str | None:
    least = task.measure.gridsize**2
    if len(kept) >= least:
        return None
    return (
        f"{len(kept)} of {len(positions)} frames are left for {split}ing, and a group of gridsize "
        f"{task.measure.gridsize} has {least}"
    )


def _promise(task: ViewTask, name: str, document: Mapping[str, Any]) -> dict[str, Any]:
    data = spelled(document)
    place = (task.folder / name).relative_to(task.root).as_posix()
    return {"path": place, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


@contextmanager
def _stores(task: ViewTask) -> Iterator[dict[str, StoreRecord]]:
    """The frames of the dose as stores; those of legacy files are converted beside the view and removed again."""
    stage = task.folder / ".sources.partial"
    try:
        records = {}
        for split, path in task.sources.items():
            store = path
            if not is_store(path):
                stage.mkdir(exist_ok=True)
                store = stage / f"{split}.zarr"
                said, _ = data_001(path, Declaration())
                ingest(plan_ingest(path, said), store)
            records[split] = open_record(store.absolute())
        yield records
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _positions(record: StoreRecord) -> NDArray[np.float64]:
    return np.stack([read_all(record, "position_y"), read_all(record, "position_x")], axis=1)


def _kept(task: ViewTask, positions: NDArray[np.float64]) -> NDArray[np.int64]:
    if task.measure.rule == "spacing":
        return spaced_view(positions, spacing_px=task.spacing_px)
    return drawn_view(len(positions), s_img=task.view.s_img, seed=task.measure.seed)


def _plan(task: ViewTask, record: StoreRecord) -> OverlapPlan:
    side = record.arrays["diffraction"].layout.shape[2]
    measure = task.measure
    return OverlapPlan(
        gridsize=measure.gridsize,
        s_img=task.view.s_img if measure.rule == "fraction" else None,
        n_groups=measure.n_groups,
        neighbor_count=measure.neighbor_count,
        probe_diameter_px=measure.probe_diameter_px or round(task.diameter * side, 6),
        seed=measure.seed,
    )


def _source(path: Path, record: StoreRecord) -> dict[str, Any]:
    """What a view was taken from: a store by its digest, a legacy file by its own."""
    if is_store(path):
        return {"name": path.name, "store_sha256": record.store_sha256}
    return {"name": path.name, "sha256": record.attrs["provenance"]["source"]["sha256"]}


def _store(task: ViewTask, split: str, record: StoreRecord, kept: NDArray[np.int64]) -> tuple[str, bool]:
    """The digest of a view's store, and whether it had to be written."""
    chosen: dict[str, Any] = {"rule": task.measure.rule}
    if task.measure.rule == "spacing":
        chosen["spacing_px"] = task.spacing_px
    else:
        chosen |= {"s_img": task.view.s_img, "seed": task.measure.seed}
    provenance = {
        "view": chosen,
        "taken_from": _source(task.sources[split], record),
        "derived_from": record.attrs["provenance"],
        "versions": library_versions(),
    }
    there = store_there(task.place(split), provenance)
    if there is not None:
        return there.store_sha256, False
    whole = open_stored(record.path)
    part = whole.isel(frame=kept).assign_attrs({**whole.attrs, "provenance": provenance})
    return write_scan(part, task.place(split)), True


def in_words(task: ViewTask, seen: Seen | PipelineError) -> str:
    """A line on what became of a view."""
    if isinstance(seen, PipelineError):
        return f"{task.name}: failed: {seen.message}"
    if seen.reason is not None or seen.metrics is None:
        return f"{task.name}: skipped: {seen.reason}"
    frames = ", ".join(
        f"{one['n_images_subsampled']} of {one['n_images_total']} {split} frames" for split, one in seen.metrics.items()
    )
    shares = " ".join(f"{one[key]:.4f}" for one in [seen.metrics["train"]] for key in one if key.startswith("metric_"))
    return f"{task.name}: {frames}, overlap (train) {shares}, {'written' if seen.written else 'unchanged'}"


def copy_metrics(tasks: Sequence[ViewTask], root: Path) -> None:
    """Put the documents with the metrics below another root too, in folders of the same names."""
    for task in tasks:
        for name in ("train_metrics.json", "test_metrics.json", BUNDLE_NAME):
            source = task.folder / name
            if source.is_file():
                target = root / source.relative_to(task.root)
                target.parent.mkdir(parents=True, exist_ok=True)
                _written(target, read_document(source))


def _written(path: Path, document: Mapping[str, Any]) -> bool:
    """Whether the document had to be written."""
    if path.is_file() and path.read_bytes() == spelled(document):
        return False
    write_document(path, document)
    return True

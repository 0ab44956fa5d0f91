"""Phase E: a bundle for each job, gone on with where it was stopped, and a manifest that tells of all of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from pipeline.cli import Telling
from pipeline.config import TrainConfig
from pipeline.errors import (
    EnvironmentFault,
    IntegrityError,
    NotFoundError,
    PipelineError,
    SourceError,
    TargetExistsError,
)
from pipeline.evaluation.folder import RunFolder, at_work, begin_run, open_run
from pipeline.evaluation.run import check_training, run_training
from pipeline.learning.prepare import fit_stream
from pipeline.scan.audit_run import REPORT_NAME, is_run
from pipeline.scan.audit_study import TRAINED, job_folder
from pipeline.scan.bundle import BUNDLE_NAME, audit_bundle
from pipeline.scan.declaration import Declaration
from pipeline.scan.ingest import data_001, plan_ingest
from pipeline.scan.npz import sha256_file
from pipeline.scan.record import is_store, open_record
from pipeline.scan.sealed import read_document, read_sealed, sealed, write_document
from pipeline.scan.staging import sweep
from pipeline.study.design import StudyDesign
from pipeline.study.folder import now
from pipeline.study.jobs import Filters, Job, Matrix
from pipeline.study.spread import Crew, spread

DRY_NAME: Final = "training_manifest.dry_run.json"
SKIPS_NAME: Final = "skip_summary.json"
LOG_NAME: Final = "train.log"
BACKEND: Final = "pytorch"

_OF_THE_JOB: Final = (SourceError, IntegrityError, NotFoundError)
"""Errors that are found again, and recorded, when the turn of the job comes."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainTask:
    """A job with everything that decides its bytes.

    artifact_root : below it the job's folder goes, as it was typed. here : the folder that typed paths start from, so
    that a process elsewhere finds them.
    """

    job: Job
    config: TrainConfig
    artifact_root: Path
    here: Path
    command: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """The run of this job."""
        return self.here / self.artifact_root / self.job.place

    @property
    def data(self) -> Path:
        """The frames for training."""
        return self.here / self.job.train_data


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """What a job left: `result` as the manifest has it, and whether there was anything to do."""

    result: Mapping[str, Any]
    new: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What was asked for, as the manifest tells it."""

    phase_c_root: Path
    phase_d_root: Path
    artifact_root: Path
    design: StudyDesign
    filters: Filters


def train_jobs(
    tasks: Sequence[TrainTask], matrix: Matrix, request: Request, *, crew: Crew
) -> Iterator[tuple[TrainTask, Trained | PipelineError]]:
    """Each job with what became of it, as they come in. After each the manifest is written, whole.

    What earlier commands did in the same root stays in it. The caller is alone at work there.

    Raises
    ------
    IntegrityError
        The manifest that is there is not as it was written.
    """
    path, began = request.artifact_root / TRAINED, now()
    before = read_sealed(path)
    if before.get("dry_run"):
        before = {}
    skips = _skips(matrix, before)
    write_document(
        request.artifact_root / SKIPS_NAME,
        sealed({"timestamp": began, "skipped_views": skips, "skipped_count": len(skips)}),
    )
    entries = {job_folder(entry): entry for entry in before.get("jobs", [])}
    write_document(path, sealed(_manifest(request, skips, entries.values(), dry_run=False, timestamp=began)))
    for task, trained in spread(tasks, train_job, crew=crew):
        name = task.job.name
        result = trained.result if isinstance(trained, Trained) else _failure(trained, entries.get(name))
        entries[name] = {**_entry(task), "result": result}
        write_document(path, sealed(_manifest(request, skips, entries.values(), dry_run=False, timestamp=began)))
        yield task, trained


def _skips(matrix: Matrix, before: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The jobs that this command or an earlier one found without frames."""
    looked_at = {job.name for job in matrix.jobs} | {job_folder(skip) for skip in matrix.skipped}
    earlier = [skip for skip in before.get("skipped_views", []) if job_folder(skip) not in looked_at]
    return sorted([*earlier, *map(dict, matrix.skipped)], key=_in_order)


def _in_order(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return entry["dose"], entry["gridsize"], entry["view"]


def plan_only(tasks: Sequence[TrainTask], matrix: Matrix, request: Request) -> Path:
    """Write the manifest of a dry run and nothing else; where it is. One that tells of bundles is left alone."""
    request.artifact_root.mkdir(parents=True, exist_ok=True)
    path = request.artifact_root / TRAINED
    if path.exists() and not read_document(path).get("dry_run"):
        path = request.artifact_root / DRY_NAME
    jobs = [
        {**_entry(task), "result": {key: value for key, value in _entry(task).items() if key in _SUMMARY}}
        for task in tasks
    ]
    skips = [dict(skip) for skip in matrix.skipped]
    write_document(path, sealed(_manifest(request, skips, jobs, dry_run=True, timestamp=now())))
    return path


_SUMMARY: Final = ("dose", "view", "gridsize", "train_data_path", "test_data_path", "log_path")


def _manifest(
    request: Request, skips: Sequence[Mapping[str, Any]], jobs: Iterable[Mapping[str, Any]], *, dry_run: bool,
    timestamp: str,
) -> dict[str, Any]:  # fmt: skip
    return {
        "timestamp": timestamp,
        "phase_c_root": str(request.phase_c_root),
        "phase_d_root": str(request.phase_d_root),
        "artifact_root": str(request.artifact_root),
        "design": request.design.document(),
        "filters": asdict(request.filters),
        "dry_run": dry_run,
        "jobs": sorted(map(dict, jobs), key=_in_order),
        "skipped_views": list(skips),
        "skipped_count": len(skips),
        "skip_summary_path": None if dry_run else SKIPS_NAME,
    }


def _entry(task: TrainTask) -> dict[str, Any]:
    job = task.job
    return {
        "dose": job.dose,
        "view": job.view,
        "gridsize": job.gridsize,
        "train_data_path": str(job.train_data),
        "test_data_path": None if job.test_data is None else str(job.test_data),
        "log_path": str(task.artifact_root / job.place / LOG_NAME),
        "artifact_dir": str(task.artifact_root / job.place),
        "backend": BACKEND,
        "model": task.config.model,
    }


def plan_tasks(
    matrix: Matrix, configs: Mapping[int, TrainConfig], *, artifact_root: Path, command: Sequence[str]
) -> list[TrainTask]:
    """Every job of the matrix with its configuration; `configs` has one for each gridsize.

    Raises
    ------
    TargetExistsError
        The folder of a job holds another training, or something else.
    """
    tasks = [
        TrainTask(
            job=job, config=_config_for(job, configs[job.gridsize]), artifact_root=artifact_root, here=Path.cwd(),
            command=tuple(command),
        )
        for job in matrix.jobs
    ]  # fmt: skip
    for task in tasks:
        if task.folder.exists():
            _refuse_other(task)
    return tasks


def _config_for(job: Job, config: TrainConfig) -> TrainConfig:
    """The configuration of a job: where its frames do not tell their photons, the dose does."""
    try:
        if is_store(job.train_data):
            known = open_record(job.train_data).attrs["photons_scale"] is not None
        else:
            layout = plan_ingest(job.train_data, data_001(job.train_data, Declaration())[0]).layout
            known = layout.quantity != "amplitude" or layout.scale is not None
    except _OF_THE_JOB:
        return config
    return config if known else replace(config, photons_per_frame=job.dose)


def _refuse_other(task: TrainTask) -> None:
    other = {"code": "study.other_job", "hint": "another --artifact-root"}
    if not is_run(task.folder):
        raise TargetExistsError(f"{task.folder}: exists already and holds no training", **other)
    try:
        run = open_run(task.folder, kind="train")
        then = run.config(TrainConfig)
        same_data = _same_data(task, run)
    except _OF_THE_JOB:
        return
    if replace(then, num_workers=0) != replace(task.config, num_workers=0):
        raise TargetExistsError(f"{task.folder}: was trained with other settings, see its run.toml", **other)
    if not same_data:
        raise TargetExistsError(f"{task.folder}: was trained on other frames than {task.job.train_data} holds", **other)


def _same_data(task: TrainTask, run: RunFolder) -> bool:
    if is_store(task.data):
        return bool(run.facts["store_sha256"] == open_record(task.data).store_sha256)
    return bool(run.facts["source"]["sha256"] == sha256_file(task.data))


def train_job(task: TrainTask) -> Trained:
    """Carry a job on to its bundle, or find that it is there.

    Raises
    ------
    PipelineError
        Of whatever kind: its frames are damaged or ambiguous, it diverged, the machine cannot do it.
    """
    task.folder.parent.mkdir(parents=True, exist_ok=True)
    sweep(task.folder.parent, task.folder.name)
    new = not (task.folder / BUNDLE_NAME).exists()
    run = open_run(task.folder, kind="train") if task.folder.exists() else _begin(task)
    if new:
        with _logged(task) as note, at_work(run), _faults(task), Telling(steps=(f"{task.job.name} fit",)) as telling:

            def begin(phase: str, total: int) -> Callable[[int], None]:
                note(f"{phase}: {total} to do")
                return telling.begin(f"{task.job.name} {phase}", total)

            run_training(run, tell=begin, hear=telling.hear)
    return Trained(result=_success(task, run), new=new)


def _begin(task: TrainTask) -> RunFolder:
    data, said = task.data, Declaration()
    if not is_store(data):
        said, notes = data_001(data, said)
        for note in notes:
            _LOG.warning("%s: %s", data, note)
    return begin_run(
        data, task.folder, task.config, kind="train", said=said, catalog=None, command=task.command,
        check=lambda record: check_training(record, task.config),
    )  # fmt: skip


@contextmanager
def _faults(task: TrainTask) -> Iterator[None]:
    """Make of what a library says the failure of this job alone."""
    try:
        yield
    except PipelineError:
        raise
    except (RuntimeError, MemoryError, OSError) as exc:
        raise EnvironmentFault(f"{task.job.name}: {exc}", code="study.job_failed") from exc


@contextmanager
def _logged(task: TrainTask) -> Iterator[Callable[[str], None]]:
    """Keep in the job's log what is said while it is trained, and how it ended; gives what writes a line there."""
    handler = logging.FileHandler(task.folder / LOG_NAME, encoding="utf-8")
    form = logging.Formatter("%(asctime)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S+00:00")
    form.converter = time.gmtime
    handler.setFormatter(form)

    def note(text: str) -> None:
        handler.handle(logging.makeLogRecord({"msg": text}))

    root = logging.getLogger()
    root.addHandler(handler)
    try:
        note(f"{task.job.name}: {task.config.model} on {task.job.train_data}")
        yield note
        note("done")
    except PipelineError as exc:
        note(f"stopped: {exc.message}" + (f"\n  hint: {exc.hint}" if exc.hint else ""))
        raise
    finally:
        root.removeHandler(handler)
        handler.close()


def _success(task: TrainTask, run: RunFolder) -> dict[str, Any]:
    """What the manifest says of a bundle, found on disk.

    Raises
    ------
    IntegrityError, SourceError, NotFoundError
        The bundle is damaged or gone.
    """
    path = run.path / BUNDLE_NAME
    if not path.is_file():
        raise NotFoundError(f"{path}: no such bundle", code="run.not_found")
    audit = audit_bundle(path)
    if audit.damages:
        found = audit.damages[0]
        raise IntegrityError(f"{path}: {found.holds}: {found.found}", code="bundle.damaged",
                             hint=f"remove {run.path} to have it trained anew")  # fmt: skip
    report = read_document(run.path / REPORT_NAME)
    stream, _ = fit_stream(run.store, task.config)
    fit = report["fit"]
    return {
        "status": "success",
        "error": None,
        "final_loss": fit["loss_last"],
        "epochs_completed": fit["steps"] // stream.plan(0).n_steps,
        "steps_completed": fit["steps"],
        "checkpoint_path": None,
        "bundle_path": BUNDLE_NAME,
        "bundle_sha256": audit.bundle_sha256,
        "bundle_size_bytes": path.stat().st_size,
        "store_sha256": run.facts["store_sha256"],
        "training_results": {
            "fit": fit, "loss": report["loss"], "metrics": report["metrics"],
            "metrics_solver": report["metrics_solver"], "warnings": report["warnings"],
        },
    }  # fmt: skip


def _failure(error: PipelineError, before: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the manifest says of a job that failed; the bundle that an earlier command left is not forgotten."""
    then = {} if before is None else before["result"]
    last = {key: then[key] for key in _BUNDLE} if then.get("status") == "success" else then.get("last_bundle")
    return {
        "last_bundle": last,
        "status": "failed",
        "error": error.message + (f" ({error.hint})" if error.hint else ""),
        "error_code": error.code,
        **dict.fromkeys(
            ("final_loss", "epochs_completed", "steps_completed", "checkpoint_path", "bundle_path", "bundle_sha256",
             "bundle_size_bytes", "store_sha256", "training_results")
        ),
    }  # fmt: skip


_BUNDLE: Final = ("bundle_path", "bundle_sha256", "bundle_size_bytes")


def lines_of(job: Job, result: Mapping[str, Any]) -> list[str]:
    """The three lines that programs read for each bundle."""
    return [
        f"    → Bundle [{job.short}]: {result['bundle_path']}",
        f"    → SHA256 [{job.short}]: {result['bundle_sha256']}",
        f"    → Size [{job.short}]: {result['bundle_size_bytes']} bytes",
    ]


def in_words(job: Job, trained: Trained | PipelineError) -> list[str]:
    """What became of a job, and for a bundle the three lines that programs read."""
    if isinstance(trained, PipelineError):
        return [f"{job.name}: failed: {trained.message}"]
    return [f"{job.name}: {'trained' if trained.new else 'unchanged'}", *lines_of(job, trained.result)]

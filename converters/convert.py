"""One legacy NPZ to one canonical store: planned, converted or found unchanged, and reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import IntegrityError, PipelineError, TargetExistsError
from pipeline.scan.audit import audit_store
from pipeline.scan.declaration import Declaration
from pipeline.scan.ingest import IngestPlan, ingest, plan_ingest
from pipeline.scan.npz import sha256_file
from pipeline.scan.provenance import library_versions
from pipeline.scan.record import StoreRecord, is_store, open_record
from pipeline.scan.staging import refuse_target

Progress = Callable[[str, int], Callable[[int], None]]
"""Label and number of frames -> a function to call with the frames just done (`pipeline.cli.progress`)."""


def silent(label: str, total: int) -> Callable[[int], None]:
    """No progress."""
    return lambda done: None


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvertConfig:
    """What to convert where, and what the user says about the source."""

    source: Path
    target: Path
    declaration: Declaration
    overwrite: bool = False
    drop_original: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ConversionReport:
    """A conversion that was done, found unnecessary (`unchanged`) or only planned (`record` is None)."""

    status: str
    plan: IngestPlan
    target: Path
    record: StoreRecord | None


def plan_conversion(config: ConvertConfig) -> ConversionReport:
    """What `convert` would do; writes nothing.

    Raises
    ------
    NotFoundError, SourceError, IntegrityError, ConfigError
        See `pipeline.scan.ingest.plan_ingest`.
    """
    plan = plan_ingest(config.source, config.declaration, drop_original=config.drop_original)
    refuse_target(config.target, suffix=".zarr", source=config.source)
    if not config.overwrite and _same_store(config.target, plan) is None:
        _refuse_other(config.target, plan)
    return ConversionReport(status="planned", plan=plan, target=config.target, record=None)


def convert(config: ConvertConfig, *, progress: Progress = silent) -> ConversionReport:
    """Convert, unless the target already holds the same store.

    Raises
    ------
    NotFoundError, SourceError, IntegrityError, ConfigError
        The source is missing, damaged or not certain in its meaning.
    TargetExistsError
        Something else is at the target and `overwrite` is false.
    """
    plan = plan_ingest(config.source, config.declaration, drop_original=config.drop_original)
    if not config.overwrite:
        same = _same_store(config.target, plan)
        if same is not None:
            _require_whole(same)
            return ConversionReport(status="unchanged", plan=plan, target=config.target, record=same)
        _refuse_other(config.target, plan)
    shown = progress(plan.npz.path.name, plan.layout.roles.n_frames)
    try:
        done = ingest(plan, config.target, overwrite=config.overwrite, progress=shown)
    except TargetExistsError:  # another conversion may have put the same store there meanwhile
        same = _same_store(config.target, plan)
        if same is None:
            raise
        return ConversionReport(status="unchanged", plan=plan, target=config.target, record=same)
    return ConversionReport(status="converted", plan=plan, target=config.target, record=done.record)


def _require_whole(record: StoreRecord) -> None:
    """Re-hash every byte of a store.

    Raises
    ------
    IntegrityError
        The store is damaged.
    """
    damages = audit_store(record.path).damages
    if damages:
        raise IntegrityError(
            f"{record.path}: holds this conversion, but damaged: {damages[0].holds}: {damages[0].found}",
            code="store.damaged",
            hint="--overwrite makes it anew",
        )


def _refuse_other(target: Path, plan: IngestPlan) -> None:
    """Say what a store at `target` was made of, if it was made of something else."""
    if not target.exists():
        return
    try:
        made_of = open_record(target).attrs["provenance"]
    except PipelineError as exc:
        raise TargetExistsError(
            f"{target}: exists already ({exc})", code="target.exists", hint="another name, or --overwrite"
        ) from exc
    name = made_of.get("source", {}).get("name", "no file")
    options, asked = made_of.get("options", {}), plan.declaration.given()
    raise TargetExistsError(
        f"{target}: holds a store made of {name} with options {options or 'none'}; now it would be made of "
        f"{plan.npz.path.name} with options {asked or 'none'}",
        code="target.exists",
        hint="another name, or --overwrite",
    )


def _same_store(target: Path, plan: IngestPlan) -> StoreRecord | None:
    """The store at `target` if the same bytes with the same options and libraries made it."""
    if not (target.is_dir() and is_store(target)):
        return None
    try:
        record = open_record(target)
    except PipelineError:  # damaged or foreign: other content, which `ingest` refuses to overwrite unasked
        return None
    made_of = record.attrs["provenance"]
    options = dict(made_of.get("options", {}))
    dropped = options.pop("drop_original", False)
    kept_original = any(e["variable"] == "diffraction" and e["legacy"] for e in made_of.get("members", ()))
    same = (
        options == json.loads(json.dumps(plan.declaration.given()))
        and made_of.get("versions") == library_versions()
        and made_of.get("source", {}).get("name") == plan.npz.path.name
        and not (kept_original if plan.drop_original else dropped)
        and made_of.get("source", {}).get("sha256") == sha256_file(plan.npz.path)
    )
    return record if same else None

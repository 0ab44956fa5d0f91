"""The stages of the study as commands: options in, one function of a stage called, what it found told."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from pipeline.cli import EXIT_FINDINGS, Outcome, as_typed, command, progress
from pipeline.scan.options import declaration_options

EXIT_ALL_FAILED = 1
_PATH = click.Path(path_type=Path)


def _crew_options(body: Callable[..., Any]) -> Callable[..., Any]:
    body = click.option("--scheduler", metavar="ADDRESS", help="spread the work over this dask cluster")(body)
    return click.option("--workers", type=int, metavar="N", help="spread the work over N processes of our own")(body)


def _design_option(body: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--design", "design_file", type=_PATH, metavar="FILE",
        help="TOML file with another design [default: design.json of the phase C root, else as it always was]",
    )(body)  # fmt: skip


@command("ptychozarr.study-design/1")
@_design_option
def design(*, design_file: Path | None) -> Outcome:
    """Show the design of the study: doses, gridsizes, views with their spacings, split, seeds, metrics, training."""
    from pipeline.study.design import StudyDesign, read_design

    document = (read_design(design_file) if design_file else StudyDesign()).document()
    return Outcome(data=document, text=json.dumps(document, indent=2, sort_keys=True))


@command("ptychozarr.study-generate/1")
@click.option("--base-npz", type=_PATH, metavar="FILE", help="scan with object, probe and positions: an NPZ or a store "
              "[default: a built-in one]")  # fmt: skip
@click.option("--output-root", type=_PATH, required=True, metavar="DIR", help="phase C root: a folder for each dose")
@click.option("--legacy-npz", is_flag=True, help="also write patched_{train,test}.npz as the old system had them")
@_design_option
@_crew_options
@declaration_options
def generate(
    *, base_npz: Path | None, output_root: Path, legacy_npz: bool, design_file: Path | None, workers: int | None,
    scheduler: str | None, **declared: Any,
) -> Outcome:  # fmt: skip
    """Phase C: simulate the base scan again at each dose, with what every frame sees, and split it for train and test.

    Each dose becomes dose_N/patched_train.zarr and patched_test.zarr; run_manifest.json has their digests and the
    photons that were counted. What is there already is left as it is.
    """
    from pipeline.errors import PipelineError
    from pipeline.scan.audit_study import GENERATED
    from pipeline.scan.declaration import Declaration
    from pipeline.scan.ingest import data_001
    from pipeline.scan.locate import locate
    from pipeline.study import generate as stage
    from pipeline.study.design import StudyDesign, read_design
    from pipeline.study.folder import root_at_work
    from pipeline.study.spread import Crew

    crew = Crew(workers=workers, scheduler=scheduler)
    plan, said = read_design(design_file) if design_file else StudyDesign(), Declaration(**declared)
    base = None if base_npz is None else locate(base_npz)
    if base is not None and base.kind == "npz":
        said, _ = data_001(base.path, said)
    found: dict[float, stage.Made | PipelineError] = {}
    with root_at_work(output_root, again=_again("generate")):
        stage.keep_design(output_root, plan)
        tasks = [
            stage.DoseTask(
                dose=dose, root=output_root.absolute(), base=None if base is None else base.path.absolute(), said=said,
                design=plan, legacy_npz=legacy_npz,
            )
            for dose in sorted(plan.doses)
        ]  # fmt: skip
        with closing(progress("study generate", len(tasks), unit="dose")) as advance:
            for task, made in stage.generate(tasks, crew=crew):
                found[task.dose] = made
                advance(1, f"{task.dose:g} photons")
    made_ones = [one for one in found.values() if isinstance(one, stage.Made)]
    data = {"manifest": str(output_root / GENERATED), "doses": [dict(one.entry) for one in made_ones]}
    notes = [f"{one.entry['intermediate_dir']}: {note}" for one in made_ones for note in one.notes]
    lines = [stage.in_words(task, found[task.dose]) for task in tasks]
    _raise_if_all_failed(list(found.values()))
    return _outcome(lines, data, list(found.values()), warnings=notes)


@command("ptychozarr.study-overlap/1")
@click.option("--phase-c-root", type=_PATH, required=True, metavar="DIR", help="of `generate` or of the old system; "
              "with --s-img the folder of one dose")  # fmt: skip
@click.option("--output-root", type=_PATH, required=True, metavar="DIR", help="phase D root: a folder for each view")
@click.option("--artifact-root", type=_PATH, metavar="DIR", help="also put the documents with the metrics here")
@click.option(
    "--rule", type=click.Choice(["fraction", "spacing"]), default="fraction", show_default=True,
    help="draw a share of the frames, or keep those that lie far enough from all kept before",
)  # fmt: skip
@click.option(
    "--gridsize", type=click.IntRange(1, 2), default=2, show_default=True, help="of the groups that are measured"
)
@click.option("--s-img", "--simg", "s_img", type=float, help="share of frames to draw, in place of the design's views")
@click.option("--n-groups", "--ngroups", "n_groups", type=click.IntRange(1), help="groups measured [default: 512]")
@click.option("--neighbor-count", type=click.IntRange(1), help="neighbours measured, K [default: 6]")
@click.option("--probe-diameter-px", type=float, help="D of the disc that stands for the probe [default: 0.6 N]")
@click.option("--rng-seed-subsample", type=click.IntRange(0), help="of draw and groups [default: the design's, 456]")
@_design_option
@_crew_options
def overlap(
    *, phase_c_root: Path, output_root: Path, artifact_root: Path | None, rule: Any, gridsize: int,
    s_img: float | None, n_groups: int | None, neighbor_count: int | None, probe_diameter_px: float | None,
    rng_seed_subsample: int | None, design_file: Path | None, workers: int | None, scheduler: str | None,
) -> Outcome:  # fmt: skip
    """Phase D: make the views of each dose and measure how much their frames overlap.

    Each view becomes dose_N/VIEW/VIEW_train.zarr and VIEW_test.zarr with train_metrics.json, test_metrics.json and
    metrics_bundle.json; overlap_manifest.json has their digests. The overlap is measured, never asked for: a view is
    left out only where it has fewer frames than a group.
    """
    from pipeline.errors import ConfigError, PipelineError
    from pipeline.scan.audit_study import VIEWED
    from pipeline.study import overlap as stage
    from pipeline.study.design import design_for
    from pipeline.study.folder import root_at_work
    from pipeline.study.places import require_root
    from pipeline.study.spread import Crew

    crew = Crew(workers=workers, scheduler=scheduler)
    require_root(phase_c_root, what="phase C, made by `study generate` or the old system")
    plan = design_for(phase_c_root, design_file)
    if s_img is not None and not 0 < s_img <= 1:
        raise ConfigError(f"--s-img {s_img}: a share lies above 0 and is at most 1", code="study.range")
    if s_img is not None and rule == "spacing":
        raise ConfigError("--s-img draws a share, and --rule is spacing", code="study.range", hint="one of both")
    if probe_diameter_px is not None and not 0 < probe_diameter_px < 1e6:
        raise ConfigError(f"--probe-diameter-px {probe_diameter_px} is out of range", code="study.range")
    measure = stage.Measure(
        rule=rule, gridsize=gridsize, n_groups=n_groups or plan.metrics.n_groups,
        neighbor_count=neighbor_count or plan.metrics.neighbor_count, probe_diameter_px=probe_diameter_px, s_img=s_img,
        seed=plan.seeds.subsampling if rng_seed_subsample is None else rng_seed_subsample,
    )  # fmt: skip
    tasks = stage.plan_views(phase_c_root.absolute(), output_root.absolute(), plan, measure)
    found: dict[str, stage.Seen | PipelineError] = {}
    with root_at_work(output_root, again=_again("overlap")):
        with closing(progress("study overlap", len(tasks), unit="view")) as advance:
            where = output_root.absolute()
            for task, seen in stage.make_views(tasks, where, phase_c_root=phase_c_root, crew=crew):
                found[task.name] = seen
                advance(1, task.name)
        if artifact_root is not None:
            stage.copy_metrics(tasks, artifact_root.absolute())
    lines = [stage.in_words(task, found[task.name]) for task in tasks]
    seen_ones = [one for one in found.values() if isinstance(one, stage.Seen)]
    data = {"manifest": str(output_root / VIEWED), "views": [dict(one.entry) for one in seen_ones]}
    _raise_if_all_failed(list(found.values()))
    return _outcome(lines, data, list(found.values()))


@command("ptychozarr.study-train/1")
@click.option("--phase-c-root", type=_PATH, required=True, metavar="DIR", help="frames of the baseline, by dose")
@click.option("--phase-d-root", type=_PATH, required=True, metavar="DIR", help="frames of the views, by dose")
@click.option(
    "--artifact-root", type=_PATH, required=True, metavar="DIR", help="a folder for each job, and the manifest"
)
@click.option("--dose", type=float, help="this dose alone, photons per frame")
@click.option("--view", metavar="VIEW", help="this view alone: baseline, dense, sparse or another of the design")
@click.option("--gridsize", type=int, help="this gridsize alone")
@click.option("--model", type=click.Choice(["canvas", "patch", "cnn"]), help="what is trained [default: the design's]")
@click.option("--backend", type=click.Choice(["pytorch"]), default="pytorch", help="what trains [default: pytorch]")
@click.option("--accelerator", type=click.Choice(["cpu"]), default="cpu", help="where to compute [default: cpu]")
@click.option(
    "--deterministic/--no-deterministic", default=True,
    help="an error where an operation cannot promise its bits [default: --deterministic]",
)  # fmt: skip
@click.option("--num-workers", type=click.IntRange(0), default=0, help="reading processes of each job [default: 0]")
@click.option("--dry-run", is_flag=True, help="write the manifest of what would be trained; train nothing")
@_design_option
@_crew_options
def train(
    *, phase_c_root: Path, phase_d_root: Path, artifact_root: Path, dose: float | None, view: str | None,
    gridsize: int | None, model: Any, backend: str, accelerator: str, deterministic: bool, num_workers: int,
    dry_run: bool, design_file: Path | None, workers: int | None, scheduler: str | None,
) -> Outcome:  # fmt: skip
    """Phase E: train the jobs of the study: all frames of each dose at gridsize 1, its views at gridsize 2.

    Each job is a run, dose_N/VIEW/gsG, that ends in wts.h5.zip. training_manifest.json has the SHA-256 and the size of
    every bundle. Jobs that are done are left as they are, jobs that were stopped are gone on with.
    """
    from dataclasses import replace

    from pipeline.scan.audit_study import TRAINED
    from pipeline.study import train as stage
    from pipeline.study.design import design_for
    from pipeline.study.folder import root_at_work
    from pipeline.study.jobs import Filters, configs_of, plan_jobs, skips_in_words
    from pipeline.study.places import require_doses, require_root
    from pipeline.study.spread import Crew

    crew = Crew(workers=workers, scheduler=scheduler, num_workers=num_workers)
    require_root(phase_c_root, what="phase C, made by `study generate` or the old system")
    require_doses(phase_c_root)
    if phase_d_root.exists():
        require_root(phase_d_root, what="phase D, made by `study overlap` or the old system")
    plan = design_for(phase_c_root, design_file).with_model(model)
    filters = Filters(dose=dose, view=view, gridsize=gridsize)
    matrix = plan_jobs(plan, filters, phase_c_root=phase_c_root, phase_d_root=phase_d_root)
    configs = {
        size: replace(config, num_workers=num_workers, deterministic=deterministic)
        for size, config in configs_of(plan, matrix.jobs).items()
    }
    tasks = stage.plan_tasks(matrix, configs, artifact_root=artifact_root, command=_typed("train"))
    request = stage.Request(
        phase_c_root=phase_c_root, phase_d_root=phase_d_root, artifact_root=artifact_root, design=plan, filters=filters
    )
    names = [task.job.name for task in tasks]
    end = skips_in_words(matrix) + ([] if tasks or matrix.skipped else ["no job matches"])
    if dry_run:
        path = stage.plan_only(tasks, matrix, request)
        lines = [f"{task.job.name}: {task.job.train_data}" for task in tasks]
        data = {"manifest": str(path), "jobs": names, "skipped_views": list(matrix.skipped), "dry_run": True}
        return Outcome(data=data, text="\n".join([*lines, *end, f"{len(tasks)} jobs planned in {path}"]))
    found: dict[str, Any] = {}
    bar = progress("study train", len(tasks), unit="job")
    with root_at_work(artifact_root, again=_again("train")), closing(bar) as advance:
        for task, trained in stage.train_jobs(tasks, matrix, request, crew=crew):
            found[task.job.name] = trained
            advance(1, task.job.name)
    lines = [line for task in tasks for line in stage.in_words(task.job, found[task.job.name])]
    results = {name: dict(one.result) for name, one in found.items() if isinstance(one, stage.Trained)}
    data = {"manifest": str(artifact_root / TRAINED), "jobs": names, "results": results,
            "skipped_views": list(matrix.skipped), "dry_run": False}  # fmt: skip
    return _outcome([*lines, *end], data, list(found.values()))


@command("ptychozarr.study-verify/1")
@click.argument("root", type=_PATH)
def verify(*, root: Path) -> Outcome:
    """Re-hash everything that the manifests below ROOT claim: stores, files, runs, bundles, and themselves.

    Exit 0: all as written. Exit 3: as far as it is there. Exit 6: each damage is named.
    """
    from pipeline.verify import audited_study

    return audited_study(root)


@command("ptychozarr.study-status/1")
@click.argument("root", type=_PATH)
def status(*, root: Path) -> Outcome:
    """What is done and what is left of the studies whose manifests lie below ROOT, from what is on disk alone."""
    from dataclasses import asdict

    from pipeline.study.status import STATES, status_of

    steps = status_of(root)
    counts = {state: sum(step.state == state for step in steps) for state in STATES}
    width = max((len(f"{step.stage} {step.name}") for step in steps), default=0)
    lines = [
        f"{f'{step.stage} {step.name}':<{width}}  {step.state}" + (f": {step.why}" if step.why else "")
        for step in steps
    ]
    total = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return Outcome(
        data={"path": str(root), "counts": counts, "steps": [asdict(step) for step in steps]},
        text="\n".join([*lines, total]),
    )


def _typed(stage: str) -> list[str]:
    return as_typed(click.get_current_context(), "pipeline.study", stage)


def _again(stage: str) -> str:
    return shlex.join(_typed(stage))


def _raise_if_all_failed(found: Sequence[object]) -> None:
    """Raise the first error where there is nothing else, so that its exit code says what it was."""
    from pipeline.errors import PipelineError

    first = found[0] if found else None
    if isinstance(first, PipelineError) and all(isinstance(one, PipelineError) for one in found):
        raise first


def _outcome(
    lines: Sequence[str], data: Mapping[str, Any], found: Sequence[object], *, warnings: Sequence[str] = ()
) -> Outcome:
    """Exit 1 where all failed, 3 where some did, 0 otherwise."""
    from pipeline.errors import PipelineError

    failed = sum(isinstance(one, PipelineError) for one in found)
    code = 0 if not failed else EXIT_ALL_FAILED if failed == len(found) else EXIT_FINDINGS
    return Outcome(data=data, text="\n".join(lines), exit_code=code, warnings=warnings)

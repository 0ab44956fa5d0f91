"""A whole run, from its folder to its report. The only module that knows every room."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import FitConfig, ReconstructConfig, TrainConfig
from pipeline.errors import BundleError, ConfigError
from pipeline.evaluation.assess import compare_with, reference_of, result_of
from pipeline.evaluation.beside import Pair, draw_beside
from pipeline.evaluation.facts import (
    LOSS_NAMES,
    attributes_of,
    bundle_config,
    curves_of,
    ends_of,
    facts_of,
    lineage_of,
    trained_on,
)
from pipeline.evaluation.figure import Reconstruction, draw, draw_losses
from pipeline.evaluation.folder import RunFolder, publish
from pipeline.evaluation.network import group_stream, improve, put_together
from pipeline.evaluation.report import REPORTS, write_report
from pipeline.evaluation.result import NAME, Result, write_result
from pipeline.evaluation.sheet import save
from pipeline.learning.allocator import keep_memory
from pipeline.learning.bundle import Bundle, load_bundle, save_bundle
from pipeline.learning.canvas import CanvasTask, improved
from pipeline.learning.determinism import make_deterministic
from pipeline.learning.estimate import Estimate, Evidence, estimate, reason_to_refine, refuse_modes, split_of
from pipeline.learning.fit import FitState, begin_fit, fit, pack_fit, unpack_fit
from pipeline.learning.grouped import GroupTask, group_support, group_task, refuse_groups
from pipeline.learning.journal import Journal, Progress
from pipeline.learning.prepare import canvas_task, fit_batches, fit_stream, start_on
from pipeline.physics.passes import Scene, check_scene, eligible_frames, open_scene, refuse_darkness
from pipeline.scan.audit_run import open_run_record
from pipeline.scan.bundle import BUNDLE_NAME
from pipeline.scan.chunks import read_all
from pipeline.scan.record import StoreRecord, open_record
from pipeline.stream.scan_stream import ScanStream
from pipeline.stream.waiting import TimedBatches

METRICS_NAME: Final = "metrics.jsonl"


def _ignore(noted: Mapping[str, Any]) -> None:
    """Hear nothing."""


def run_reconstruction(
    run: RunFolder, *, tell: Callable[[str, int], Progress], hear: Callable[[Mapping[str, Any]], None] = _ignore
) -> Mapping[str, Any]:
    """Carry a reconstruction on to its end; what `--json` prints. A run that is whole already is left as it is.

    Leaves report.json, report.html and report.png, then reconstruction.zarr, and then removes the checkpoints.

    Parameters
    ----------
    tell : gets the name of a phase and its number of passes; gives what is called with each number of passes done.
    hear : gets what is noted of each pass before it is counted, see `Hearing`, and how many `frames` it reads.

    Raises
    ------
    ConfigError, PlanError, SchemaError, DivergedError
        See `open_scene` and `estimate`.
    """
    if (run.path / NAME).exists():
        shutil.rmtree(run.checkpoints, ignore_errors=True)
        return summary(run.path)
    config = run.config(ReconstructConfig)
    make_deterministic(threads=config.threads)
    keep_memory()
    bundle = _bundle_of(run)
    probe = None if bundle is None else bundle.probe
    scene = open_scene(run.store, photons_per_frame=config.photons_per_frame, probe=probe)
    n_frames = int(np.count_nonzero(scene.eligible))
    journal = Journal(
        run.checkpoints, identity=run.identity(config), tell=tell,
        hear=lambda name, noted: hear({**noted, "frames": n_frames}),
    )  # fmt: skip
    found = estimate(scene, config, journal)
    result = result_of(scene, found)
    told, picture = _told_and_drawn(run, config, scene, found, result, journal)
    stage = run.checkpoints  # what is made there is given its place when all of it is whole
    save(draw(picture, title=told["title"]), stage / "report.png")
    pictures, bundle_sha256, nll_network = {"reconstruction": stage / "report.png"}, None, None
    if bundle is not None:
        network = bundle.network(frame_side=scene.side)
        made = improve(scene, found, config, journal, bundle=bundle, network=network)
        bundle_sha256, nll_network = bundle.sha256, made.loss
        solved, result = result, replace(result, object=made.object.numpy(), object_solver=result.object)
        told |= facts_of(run, config, scene, found, journal)
        told |= {"metrics_solver": _compared(scene, found, solved), "metrics": _compared(scene, found, result)}
        told |= {"phases_turned_rad": made.turned_rad, "align_phases": config.align_phases}
        told |= {"nll_network": made.loss, "bundle_sha256": bundle.sha256, "bundle": trained_on(bundle.lineage)}
        told["warnings"] = [*told["warnings"], *made.warnings]
        judged = f"{picture.loss_name} per pixel on held-out frames: solver alone {found.chosen.loss:.4f}"
        pair = _pair(picture, result.object)
        save(
            draw_beside(pair, title=told["title"], subtitle=f"{judged}, network {made.loss:.4f}"),
            stage / "network.png",
        )
        pictures = {"solver and network": stage / "network.png", "solver alone": stage / "report.png"}
    write_report(stage, told, pictures)
    publish(run, *(path.name for path in pictures.values()), *REPORTS)
    attrs = attributes_of(config, scene, found, bundle_sha256=bundle_sha256, nll_network=nll_network)
    write_result(result, run.path / NAME, attrs={**attrs, "warnings": told["warnings"]})
    shutil.rmtree(run.checkpoints)
    return summary(run.path)


def _bundle_of(run: RunFolder) -> Bundle | None:
    """The bundle that a run was begun with.

    Raises
    ------
    BundleError
        It is another one by now, or damaged.
    """
    if "bundle" not in run.facts:
        return None
    bundle = load_bundle(Path(run.facts["bundle"]["path"]))
    if bundle.sha256 != run.facts["bundle"]["sha256"]:
        raise BundleError(
            f"{run.facts['bundle']['path']}: its SHA-256 is {bundle.sha256}, the run was begun with "
            f"{run.facts['bundle']['sha256']}",
            code="run.other_bundle",
            hint="put the same bundle back, or begin a new run",
        )
    return bundle


def about_bundle(path: Path) -> Mapping[str, Any]:
    """What run.json keeps of the bundle at `path`.

    Raises
    ------
    NotFoundError, SourceError, BundleError
        See `load_bundle`.
    """
    return {"bundle": {"path": str(path.absolute()), "sha256": load_bundle(path).sha256}}


def run_training(
    run: RunFolder, *, tell: Callable[[str, int], Progress], hear: Callable[[Mapping[str, Any]], None] = _ignore
) -> Mapping[str, Any]:
    """Carry a training on to its bundle; what `--json` prints. A run that is whole already is left as it is.

    Leaves metrics.jsonl, report.json, report.html and pictures, then wts.h5.zip, and then removes the checkpoints.

    Parameters
    ----------
    tell : gets the name of a phase and its number of passes or steps; gives what is called with each number done.
    hear : gets what is noted of each before it is counted, see `Hearing`, and how many `frames` it reads.

    Raises
    ------
    ConfigError, PlanError, SchemaError, DivergedError
        See `open_scene`, `estimate` and `fit`.
    """
    if (run.path / BUNDLE_NAME).exists():
        shutil.rmtree(run.checkpoints, ignore_errors=True)
        return training_summary(run)
    config = run.config(TrainConfig)
    make_deterministic(threads=config.threads, strict=config.deterministic)
    keep_memory()
    scene = open_scene(run.store, photons_per_frame=config.photons_per_frame)
    stream, fit_config = fit_stream(run.store, config)
    n_frames = int(np.count_nonzero(scene.eligible))
    journal = Journal(
        run.checkpoints, identity=run.identity(config), tell=tell, log=run.path / METRICS_NAME,
        hear=lambda name, noted: hear({**noted, "frames": stream.order.batch_size if name == "fit" else n_frames}),
    )  # fmt: skip
    found = estimate(scene, config.solving, journal)
    of_canvas = config.model == "canvas"
    task = (
        canvas_task(scene, found, config, journal)
        if of_canvas
        else group_task(scene, found, config, cluster_size=stream.order.cluster_size)
    )
    state, losses = _fitted(task, stream, fit_config, journal, num_workers=config.num_workers)
    seen = found.held.gauge.object_to_source(_seen_by(task, scene, found, config, journal)).numpy()
    result = result_of(scene, found)
    told, picture = _told_and_drawn(run, config.solving, scene, found, result, journal)
    told["title"] = f"Training on {run.facts['source']['name']}"
    told["warnings"] = [*told["warnings"], *stream.notes]
    told["metrics_solver"] = told["metrics"]
    told["metrics"] = _compared(scene, found, replace(result, object=seen))
    told["fit"] = {
        "model": config.model, "supervised": config.supervised, "gridsize": config.stream.gridsize,
        "steps": state.step, "batch_size": stream.order.batch_size,
        "order_sha256": stream.order_sha256(), **ends_of(losses),
    }  # fmt: skip
    stage = run.checkpoints
    pictures = {
        "solver and network": stage / "network.png",
        "training loss": stage / "loss.png",
        "solver alone": stage / "report.png",
    }
    about = f"the scan that the network was trained on, after {state.step:,} steps"
    save(draw_beside(_pair(picture, seen), title=told["title"], subtitle=about), pictures["solver and network"])
    save(draw_losses(losses, title=told["title"]), pictures["training loss"])
    save(draw(picture, title=f"{told['title']}: solver alone"), pictures["solver alone"])
    (stage / BUNDLE_NAME).unlink(missing_ok=True)
    told["bundle_sha256"] = save_bundle(
        stage / BUNDLE_NAME,
        model=config.model,
        config=bundle_config(config, scene, found),
        weights={name: weight.detach() for name, weight in state.weights.items()},
        probe=found.held.gauge.probe_to_source(found.held.probe),
        lineage={**lineage_of(run, scene), "orders": {"fit": told["fit"]["order_sha256"]}},
    )
    write_report(stage, told, pictures)
    publish(run, *(path.name for path in pictures.values()), *REPORTS, BUNDLE_NAME)
    shutil.rmtree(run.checkpoints)
    return training_summary(run)


def _seen_by(
    task: CanvasTask | GroupTask, scene: Scene, found: Estimate, config: TrainConfig, journal: Journal
) -> Tensor:
    """The object of the training's own scan as the fitted network sees it. (y, x) complex64, solver's gauge."""
    if isinstance(task, GroupTask):
        return put_together(
            scene, found, config, task.task.network, use=None, num_workers=config.num_workers
        ).object  # fmt: skip
    start = start_on(
        scene, found, found.chosen.prior, journal, name="solve held", batch_pixels=config.solver.batch_pixels,
        num_workers=config.num_workers,
    )  # fmt: skip
    return improved(task.network, start)


def _fitted(
    task: CanvasTask | GroupTask, stream: ScanStream, config: FitConfig, journal: Journal, *, num_workers: int
) -> tuple[FitState, list[float]]:
    """The network's last state, and the loss of each step."""
    batches: list[TimedBatches] = []

    def states(start: FitState) -> Iterator[FitState]:
        batches.append(fit_batches(stream, step=start.step, num_workers=num_workers))
        return fit(task, batches[-1], config, start=start)

    state, losses = journal.carry_on(
        "fit",
        FitState,
        passes=config.steps,
        begin=lambda: begin_fit(task.network),
        pack=pack_fit,
        unpack=unpack_fit,
        states=states,
        done=lambda state: state.step,
        waited=lambda: sum(one.waited_s for one in batches),
        watch=lambda state: {"loss": state.loss},
    )
    for one in batches:
        one.close()
    return state, [told["loss"] for told in losses]


def _told_and_drawn(
    run: RunFolder, config: ReconstructConfig, scene: Scene, found: Estimate, result: Result, journal: Journal
) -> tuple[dict[str, Any], Reconstruction]:
    """What the report says and shows of an estimate."""
    told = facts_of(run, config, scene, found, journal)
    told |= {"r_factor": found.fit.r_factor, "r_factor_floor": found.fit.r_factor_floor}
    told["metrics"] = _compared(scene, found, result)
    return told, Reconstruction(
        object=result.object,
        coverage=result.coverage,
        origin_px=result.origin_px,
        probe=result.probe,
        positions=result.positions,
        position_shift=None if found.shift is None else result.shift,
        gain=None if found.gain is None else result.gain,
        frame_loss=found.fit.frame_loss,
        loss_name=LOSS_NAMES[found.solver.loss],
        convergence=curves_of(found),
        floor=found.chosen.floor,
        reference=reference_of(scene, found.optics.geometry),
        reference_role=_role(scene),
    )


def _pair(picture: Reconstruction, network: NDArray[np.complex64]) -> Pair:
    return Pair(
        solver=picture.object,
        network=network,
        coverage=picture.coverage,
        origin_px=picture.origin_px,
        reference=picture.reference,
        reference_role=picture.reference_role,
    )


def _compared(scene: Scene, found: Estimate, result: Result) -> Mapping[str, Any] | None:
    return compare_with(reference_of(scene, found.optics.geometry), result, role=_role(scene), used=scene.eligible)


def _role(scene: Scene) -> str:
    """What the stored object is: truth, guess, or none."""
    if "object" not in scene.record.arrays:
        return "none"
    return str(scene.record.arrays["object"].attrs.get("role"))


def check_training(record: StoreRecord, config: TrainConfig) -> None:
    """Refuse a store that cannot be trained on so.

    Raises
    ------
    SchemaError, ConfigError, PlanError
        See `check_reconstruction`, `refuse_groups` and `fit_stream`.
    """
    check_reconstruction(record, config.solving)
    stream, _ = fit_stream(record.path, config)
    if config.model != "canvas":
        refuse_groups(config, stream)


def training_summary(run: RunFolder) -> Mapping[str, Any]:
    """What a whole training says about itself, read from its bundle and its report."""
    bundle, record = run.path / BUNDLE_NAME, open_run_record(run.path)
    refine = record.report["refine"]
    return {
        "run": str(run.path),
        "bundle_path": str(bundle),
        "bundle_sha256": hashlib.sha256(bundle.read_bytes()).hexdigest(),
        "store_sha256": run.facts["store_sha256"],
        "prior": record.report["prior"]["name"],
        "lam": record.report["prior"]["lam"],
        "refine": refine["what"],
        "modes": refine["modes"],
        "refine_reason": refine["reason"],
        "loss": record.report["loss"],
        "nll_solver": record.losses["solver"],
        "nll_floor": record.losses["floor"],
    }


def check_reconstruction(record: StoreRecord, config: ReconstructConfig, *, bundle: Path | None = None) -> None:
    """Refuse a store that cannot be reconstructed so. Reads no frame but where light is in doubt.

    Raises
    ------
    SchemaError, ConfigError, PlanError, BundleError
        See `check_scene`, `refuse_darkness`, `refuse_modes`, `split_frames`, `load_bundle` and `Bundle.network`.
    """
    used = None if bundle is None else load_bundle(bundle)
    positions = check_scene(record, probe=None if used is None else used.probe)
    if used is not None:
        used.network(frame_side=record.arrays["diffraction"].layout.shape[1], where=str(bundle))
        if used.model != "canvas":
            group_stream(record.path, used.training)
            stored = torch.from_numpy(read_all(record, "probe")) if "probe" in record.arrays else used.probe
            group_support(used.training, stored)
    if config.align_phases and (used is None or used.model == "canvas"):
        raise ConfigError(
            "phases are aligned between the patches of a network, and there are none: "
            f"{'no bundle is given' if used is None else 'the model canvas makes none'}",
            code="config.align_phases", hint="leave --align-phases out", keys=("align_phases",),
        )  # fmt: skip
    refuse_darkness(record)
    own = record.arrays["probe"].layout.shape[0] if "probe" in record.arrays else 0
    refuse_modes(config.refine, stored=own or (0 if used is None else len(used.probe)))
    split_of(config.seed, positions, eligible_frames(record))


def summary(folder: Path) -> Mapping[str, Any]:
    """What a whole reconstruction says about itself, read from its store."""
    record = open_record(folder / NAME)
    attrs = record.attrs
    evidence, asked = attrs["refine"]["evidence"], attrs["configuration"]["refine"]["what"]
    return {
        "output": str(folder),
        "prior": attrs["prior"]["name"],
        "lam": attrs["prior"]["lam"],
        "refine": attrs["refine"]["what"],
        "refine_reason": reason_to_refine(asked, None if evidence is None else Evidence(**evidence)),
        "modes": attrs["refine"]["modes"],
        "loss": attrs["loss"]["name"],
        "nll_floor": attrs["nll"]["floor"],
        "nll_solver": attrs["nll"]["solver"],
        "nll_network": attrs["nll"]["network"],
        "store_sha256": attrs["store_sha256"],
        "bundle_sha256": attrs["bundle_sha256"],
        "reconstruction_sha256": record.store_sha256,
        "warnings": attrs["warnings"],
    }

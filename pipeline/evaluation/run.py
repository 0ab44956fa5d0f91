"""A whole run, from its folder to its report. The only module that knows every room."""

from __future__ import annotations

import resource
import shlex
import shutil
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.config import ReconstructConfig, to_toml
from pipeline.evaluation.assess import compare_with, reference_of, result_of
from pipeline.evaluation.figure import Curve, Reconstruction, draw, save
from pipeline.evaluation.folder import RunFolder, host, versions
from pipeline.evaluation.report import write_report
from pipeline.evaluation.result import NAME, write_result
from pipeline.learning.allocator import keep_memory
from pipeline.learning.determinism import make_deterministic
from pipeline.learning.estimate import Estimate, estimate, refuse_modes
from pipeline.learning.journal import Journal, Progress
from pipeline.physics.passes import Scene, check_scene, open_scene
from pipeline.scan.record import StoreRecord, open_record

_LOSS_NAMES: Final = {
    "poisson": "Poisson NLL",
    "poisson-background": "Poisson NLL",
    "amplitude": "amplitude loss",
}


def run_reconstruction(run: RunFolder, *, tell: Callable[[str, int], Progress]) -> Mapping[str, Any]:
    """Carry a reconstruction on to its end; what `--json` prints. A run that is whole already is left as it is.

    Leaves report.json, report.html and report.png, then reconstruction.zarr, and then removes the checkpoints.

    Parameters
    ----------
    tell : gets the name of a phase and its number of passes; gives what is called with each number of passes done.

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
    scene = open_scene(run.store, photons_per_frame=config.photons_per_frame)
    journal = Journal(run.checkpoints, tell=tell)
    found = estimate(scene, config, journal)
    result = result_of(scene, found)
    role = str(scene.record.arrays["object"].attrs.get("role")) if "object" in scene.record.arrays else "none"
    reference = reference_of(scene, found.optics.geometry)
    metrics = compare_with(reference, result, role=role, used=scene.eligible)
    told = _facts(run, config, scene, found, journal)
    told |= {"metrics": metrics, "r_factor": found.fit.r_factor, "r_factor_floor": found.fit.r_factor_floor}
    picture = Reconstruction(
        object=result.object,
        coverage=result.coverage,
        origin_px=result.origin_px,
        probe=result.probe,
        positions=result.positions,
        position_shift=None if found.shift is None else result.shift,
        gain=None if found.gain is None else result.gain,
        frame_loss=found.fit.frame_loss,
        loss_name=_LOSS_NAMES[found.solver.loss],
        convergence=_curves(found),
        floor=found.chosen.floor,
        reference=reference,
        reference_role=role,
    )
    save(draw(picture, title=told["title"]), run.path / "report.png")
    write_report(run.path, told, {"reconstruction": run.path / "report.png"})
    write_result(result, run.path / NAME, attrs=_attributes(config, scene, found))
    shutil.rmtree(run.checkpoints)
    return summary(run.path)


def check_reconstruction(record: StoreRecord, config: ReconstructConfig) -> None:
    """Refuse a store that cannot be reconstructed so. Reads no frame.

    Raises
    ------
    SchemaError, ConfigError
        See `check_scene` and `refuse_modes`.
    """
    check_scene(record)
    refuse_modes(config.refine, stored=record.arrays["probe"].layout.shape[0])


def summary(folder: Path) -> Mapping[str, Any]:
    """What a whole reconstruction says about itself, read from its store."""
    record = open_record(folder / NAME)
    attrs = record.attrs
    return {
        "output": str(folder),
        "prior": attrs["prior"]["name"],
        "lam": attrs["prior"]["lam"],
        "refine": attrs["refine"]["what"],
        "modes": attrs["refine"]["modes"],
        "loss": attrs["loss"]["name"],
        "nll_floor": attrs["nll"]["floor"],
        "nll_solver": attrs["nll"]["solver"],
        "nll_network": attrs["nll"]["network"],
        "store_sha256": attrs["store_sha256"],
        "bundle_sha256": attrs["bundle_sha256"],
        "reconstruction_sha256": record.store_sha256,
    }


def _attributes(config: ReconstructConfig, scene: Scene, found: Estimate) -> Mapping[str, Any]:
    """Root attributes of the result: what it was made of and how; nothing that differs from run to run."""
    settled = {"ptychozarr", "numpy", "torch"}
    return {
        "store_sha256": scene.record.store_sha256,
        "bundle_sha256": None,
        "prior": {"name": found.chosen.prior.name, "lam": found.chosen.prior.weight},
        "refine": {
            "what": found.refined,
            "modes": len(found.optics.probe),
            "evidence": None if found.evidence is None else asdict(found.evidence),
        },
        "loss": {"name": found.solver.loss, "background": found.background},
        "nll": {
            "solver": found.chosen.loss,
            "network": None,
            "floor": found.chosen.floor,
            "frames": int(np.count_nonzero(found.split.judged)),
        },
        "r_factor": found.fit.r_factor,
        "photons_scale": scene.photons_scale,
        "configuration": tomllib.loads(to_toml(replace(config, num_workers=0))),  # workers change nothing
        "versions": {name: text for name, text in versions().items() if name in settled},
    }


def _facts(
    run: RunFolder, config: ReconstructConfig, scene: Scene, found: Estimate, journal: Journal
) -> dict[str, Any]:
    """What the report tells."""
    source = run.facts["source"]
    waited, spent = (sum(getattr(phase, name) for phase in journal.phases) for name in ("wait_s", "wall_s"))
    shift = None if found.shift is None else found.shift.numpy()[scene.eligible]
    length = None if shift is None else np.hypot(*shift.T)
    gain = None if found.gain is None else found.gain.numpy()[scene.eligible]
    return {
        "title": f"Reconstruction of {source['name']}",
        "command": shlex.join(run.facts["command"]),
        "source": {**source, "store_sha256": scene.record.store_sha256},
        "frames": scene.n_frames,
        "frame_shape": [scene.side, scene.side],
        "frames_invalid": int(np.count_nonzero(~scene.eligible)),
        "photons_per_frame": None if found.solver.loss == "amplitude" else found.survey.photons_per_frame,
        "loss": found.solver.loss,
        "background": found.background,
        "prior": {"name": found.chosen.prior.name, "lam": found.chosen.prior.weight},
        "refine": {
            "what": found.refined,
            "modes": len(found.optics.probe),
            "asked": config.refine.what,
            "reason": found.reason,
            "evidence": None if found.evidence is None else asdict(found.evidence),
        },
        "choice": [
            {"prior": str(trial.prior), "nll": trial.loss, "iterations": trial.iterations} for trial in found.trials
        ],
        "nll_held_out": found.chosen.loss,
        "nll_floor": found.chosen.floor,
        "frames_held_out": int(np.count_nonzero(found.split.judged)),
        "shift_px": None if length is None else {"median": float(np.median(length)), "max": float(length.max())},
        "gain": None if gain is None else {"min": float(gain.min()), "max": float(gain.max())},
        "phases": [
            {
                "name": phase.name,
                "passes": phase.passes,
                "cpu_s": phase.cpu_s,
                "wall_s": phase.wall_s,
                "data_wait_fraction": phase.wait_s / phase.wall_s if phase.wall_s else None,
            }
            for phase in journal.phases
        ],
        "data_wait_fraction": waited / spent if spent else None,
        "memory_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "environment": {**versions(), "threads": config.threads, "cpu": host()["cpu"]},
        "warnings": list(_warnings(scene, found)),
    }


def _warnings(scene: Scene, found: Estimate) -> Iterator[str]:
    if found.solver.loss == "amplitude":
        yield (
            "the photon scale is unknown: frames were scaled to 1e5 photons and the amplitude loss takes the place of "
            "the Poisson NLL; --photons-per-frame tells the scale"
        )
    if found.refined == "none" and found.evidence is not None and found.evidence.asks_to_refine:
        yield f"{found.reason}; --refine auto would mend them"
    if scene.declared and scene.record.attrs["photons_scale"] is not None:
        yield "--photons-per-frame overrules the photon scale that the store itself tells"


def _curves(found: Estimate) -> tuple[Curve, ...]:
    """Held-out loss over the passes of every candidate."""
    return tuple(
        Curve(
            label=str(trial.prior),
            iterations=[number for number, _ in trial.curve],
            losses=[loss for _, loss in trial.curve],
            chosen=trial is found.chosen,
        )
        for trial in found.trials
    )

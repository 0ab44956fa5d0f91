"""What a run tells about itself: in its report, and in the attributes of its result."""

from __future__ import annotations

import resource
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Final

import numpy as np

from pipeline.config import ReconstructConfig, TrainConfig
from pipeline.evaluation.figure import Curve
from pipeline.evaluation.folder import DECISIVE, RunFolder, host, versions
from pipeline.learning.estimate import Estimate
from pipeline.learning.journal import Journal
from pipeline.physics.passes import Scene
from pipeline.physics.refine import REFINING_PRIOR
from pipeline.settings import to_toml

LOSS_NAMES: Final = {
    "poisson": "Poisson NLL",
    "poisson-background": "Poisson NLL",
    "amplitude": "amplitude loss",
}


def in_words(found: Mapping[str, Any]) -> str:
    """What a summary says of the estimate, for people: prior and probe, why it refined or not, losses; three lines."""
    refined = found["refine"] != "none"
    probe = f"{found['refine']} refined, {found['modes']} mode(s)" if refined else "as stored"
    name = LOSS_NAMES[found["loss"]]
    floor = "unknown" if found["nll_floor"] is None else f"{found['nll_floor']:.4f}"
    network = found.get("nll_network")
    beside = "" if network is None else f", with the network {network:.4f}"
    return (
        f"prior {found['prior']} {found['lam']:g}, probe {probe}\n"
        f"  {'refined' if refined else 'not refined'}: {found['refine_reason']}\n"
        f"  {name} on held-out frames {found['nll_solver']:.4f} a pixel{beside}; photon noise alone {floor}"
    )


def attributes_of(
    config: ReconstructConfig,
    scene: Scene,
    found: Estimate,
    *,
    bundle_sha256: str | None,
    nll_network: float | None,
) -> Mapping[str, Any]:
    """Root attributes of the result: what it was made of and how; nothing that differs from run to run."""
    return {
        "store_sha256": scene.record.store_sha256,
        "bundle_sha256": bundle_sha256,
        "prior": {"name": found.chosen.prior.name, "lam": found.chosen.prior.weight},
        "refine": {
            "what": found.refined,
            "modes": len(found.optics.probe),
            "evidence": None if found.evidence is None else asdict(found.evidence),
        },
        "loss": {"name": found.solver.loss, "background": found.background},
        "nll": {
            "solver": found.chosen.loss,
            "network": nll_network,
            "floor": found.chosen.floor,
            "flat": found.flat_loss,
            "frames": int(np.count_nonzero(found.split.judged)),
        },
        "r_factor": found.fit.r_factor,
        "photons_scale": None if found.solver.loss == "amplitude" else scene.photons_scale,
        "configuration": tomllib.loads(to_toml(replace(config, num_workers=0))),  # workers change nothing
        "versions": {name: text for name, text in versions().items() if name in DECISIVE},
    }


def facts_of(
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
        "nll_flat": found.flat_loss,
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
        "warnings": list(_warnings(config, scene, found)),
    }


def _warnings(config: ReconstructConfig, scene: Scene, found: Estimate) -> Iterator[str]:
    modes, used = config.refine.modes, len(found.optics.probe)
    if modes is not None and used < modes:
        yield (
            f"--modes {modes}: the frames did not ask for a refinement, so the probe has the {used} of the store; "
            "--refine probe makes more"
        )
    if found.chosen.loss >= found.flat_loss:
        yield (
            f"the object predicts held-out frames no better than a flat one ({found.chosen.loss:.4g}, flat "
            f"{found.flat_loss:.4g}): positions, probe or quantity of the store are wrong, or solver.step is too long"
        )
    if found.solver.loss == "amplitude":
        yield (
            "the photon scale is unknown: frames were scaled to 1e5 photons and the amplitude loss takes the place of "
            "the Poisson NLL; --photons-per-frame tells the scale"
        )
    if scene.declared and scene.record.attrs["photons_scale"] is not None:
        yield "--photons-per-frame overrules the photon scale that the store itself tells"


def curves_of(found: Estimate) -> tuple[Curve, ...]:
    """Held-out loss over the passes of every candidate, and of the refinement before them."""
    refining = (
        ()
        if not found.refining
        else (
            Curve(
                label=f"{REFINING_PRIOR}, while refined",
                iterations=[number for number, _ in found.refining],
                losses=[loss for _, loss in found.refining],
                chosen=False,
            ),
        )
    )
    return refining + tuple(
        Curve(
            label=str(trial.prior),
            iterations=[number for number, _ in trial.curve],
            losses=[loss for _, loss in trial.curve],
            chosen=trial is found.chosen,
        )
        for trial in found.trials
    )


def bundle_config(config: TrainConfig, scene: Scene, found: Estimate) -> Mapping[str, Any]:
    """What a bundle has to know to be used: how it was trained, and on what kind of frames."""
    return {
        "configuration": tomllib.loads(to_toml(replace(config, num_workers=0))),  # workers change nothing
        "frame_side": scene.side,
        "loss": {"name": found.holding.loss, "background": found.holding.background},
        "photons_per_frame": None if found.solver.loss == "amplitude" else found.survey.photons_per_frame,
        "gauge": {
            "blank_in_source": found.held.gauge.blank_in_source,
            "photons_scale": scene.photons_scale,
            "photons_per_frame": found.survey.photons_per_frame,
        },
        "prior": {"name": found.chosen.prior.name, "lam": found.chosen.prior.weight},
        "refine": {"what": found.refined, "modes": len(found.held.probe)},
    }


def lineage_of(run: RunFolder, scene: Scene) -> Mapping[str, Any]:
    """Where a bundle comes from: the store and the file behind it, by what they hold."""
    source = run.facts["source"]
    return {
        "store_sha256": scene.record.store_sha256,
        "source": {"name": source["name"], "sha256": source["sha256"]},
        "versions": {name: text for name, text in versions().items() if name in DECISIVE},
    }


def trained_on(lineage: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the report tells of the training behind a bundle."""
    source = lineage.get("source") or {}
    return {
        "store_sha256": lineage.get("store_sha256"),
        "source": {"name": source.get("name"), "sha256": source.get("sha256")},
    }


def ends_of(losses: Sequence[float]) -> Mapping[str, float | None]:
    """The mean loss of the first and of the last fiftieth of the steps."""
    n = max(len(losses) // 50, 1)
    if not losses:
        return {"loss_first": None, "loss_last": None}
    return {"loss_first": float(np.mean(losses[:n])), "loss_last": float(np.mean(losses[-n:]))}

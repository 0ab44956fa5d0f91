"""What the network of a bundle makes of a scan, judged beside the solver on frames that neither has seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from pipeline.config import ReconstructConfig
from pipeline.learning.bundle import Bundle
from pipeline.learning.canvas import improved
from pipeline.learning.estimate import Estimate, reported_background
from pipeline.learning.journal import Journal
from pipeline.learning.networks import UNet
from pipeline.learning.prepare import passes_of, start_on
from pipeline.physics.choice import held_out_scores
from pipeline.physics.passes import Scene
from pipeline.physics.refine import moved

_SAME_PROBE: Final = 0.98
_SAME_DOSE: Final = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Improved:
    """A network's object and how well it predicts held-out frames.

    object : (y, x) complex64 in the source's gauge. loss : per good pixel, from a solve that did not see the frames.
    warnings : plain words, where the network is worse than the solver or was trained on something else.
    """

    object: Tensor
    loss: float
    warnings: tuple[str, ...]


def improve(
    scene: Scene, found: Estimate, config: ReconstructConfig, journal: Journal, *, bundle: Bundle, network: UNet
) -> Improved:
    """The object that a bundle's network makes of a scan, starting from the prior that it was trained on."""
    prior = bundle.prior
    how: Mapping[str, Any] = {"batch_pixels": config.solver.batch_pixels, "num_workers": config.num_workers}
    start = start_on(scene, found, prior, journal, name="solve for the network", **how)
    made = found.held.gauge.object_to_source(improved(network, start))

    def judge() -> Mapping[str, float]:
        blind = start_on(
            scene, found, prior, journal, name="held-out solve for the network", use=found.split.solved, **how
        )
        with passes_of(scene, found, **how) as passes:
            frames = moved(passes, shift=found.shift, gain=found.gain)
            loss, _ = held_out_scores(
                frames,
                improved(network, blind),
                found.held,
                split=found.split,
                loss=found.holding.loss,
                background=reported_background(found.holding),
            )
        return {"loss": loss}

    loss = journal.settle("network", judge)["loss"]
    return Improved(object=made, loss=loss, warnings=tuple(_warnings(scene, found, bundle, loss)))


def _warnings(scene: Scene, found: Estimate, bundle: Bundle, loss: float) -> Iterator[str]:
    if loss > found.chosen.loss:
        yield (
            f"the network predicts held-out frames worse than the solver alone ({loss:.4f} against "
            f"{found.chosen.loss:.4f} a pixel): it was trained on another kind of object; take object_solver"
        )
    if "probe" not in scene.record.arrays:
        yield "the scan has no probe: that of the bundle, which is training's, was used"
    trained, here = bundle.probe.abs().square().sum(0), scene.probe.abs().square().sum(0)
    alike = float((trained * here).sum() / (trained.norm() * here.norm()))
    if alike < _SAME_PROBE:
        yield f"the probe differs from the one that the network was trained with: {alike:.3f} of 1 alike"
    dose, known = found.survey.photons_per_frame, bundle.config["photons_per_frame"]
    if known is not None and not 1 / _SAME_DOSE < dose / known < _SAME_DOSE:
        yield f"{dose:.3g} photons a frame; the network was trained on {known:.3g}"
    amplitude = bundle.config["loss"]["name"] == "amplitude"
    if amplitude != (scene.loss == "amplitude"):
        yield "the photon scale is known for one of training and this scan, and unknown for the other"

"""What the network of a bundle makes of a scan, judged beside the solver on frames that neither has seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import ReconstructConfig, StreamConfig, TrainConfig
from pipeline.evaluation.reassembly import Reassembled, placed, reassemble, reassemble_aligned
from pipeline.learning.bundle import Bundle
from pipeline.learning.canvas import improved
from pipeline.learning.estimate import Estimate
from pipeline.learning.grouped import GroupNetwork, group_optics, group_support, moved_batch, patches_with
from pipeline.learning.journal import Journal
from pipeline.learning.judging import reported_background
from pipeline.learning.models import Network
from pipeline.learning.networks import UNet
from pipeline.learning.prepare import passes_of, start_on
from pipeline.physics.choice import held_out_scores
from pipeline.physics.forward import CanvasGeometry, support_slice
from pipeline.physics.gauge import BLANK
from pipeline.physics.passes import Scene
from pipeline.physics.refine import moved
from pipeline.scan.chunks import read_all
from pipeline.stream.scan_stream import ScanStream
from pipeline.stream.waiting import TimedBatches

_GROUPS_AT_ONCE: Final = 32
_SAME_PROBE: Final = 0.98
_SAME_DOSE: Final = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Improved:
    """A network's object and how well it predicts held-out frames.

    object : (y, x) complex64 in the source's gauge. loss : per good pixel, from frames other than those that judge.
    turned_rad : by how much patches were turned to agree in phase; None where none was.
    warnings : plain words, where the network is worse than the solver or was trained on something else.
    """

    object: Tensor
    loss: float
    turned_rad: float | None
    warnings: tuple[str, ...]


def improve(
    scene: Scene, found: Estimate, config: ReconstructConfig, journal: Journal, *, bundle: Bundle, network: Network
) -> Improved:
    """The object that a bundle's network makes of a scan, and how it predicts frames that it was not made from."""
    how: Mapping[str, Any] = {"batch_pixels": config.solver.batch_pixels, "num_workers": config.num_workers}

    def canvas(name: str, use: NDArray[np.bool_] | None) -> tuple[Tensor, float | None]:
        if isinstance(network, UNet):
            return improved(network, start_on(scene, found, bundle.prior, journal, name=name, use=use, **how)), None
        made = put_together(
            scene, found, bundle.training, network, use=use, align=config.align_phases, num_workers=config.num_workers
        )
        return made.object, made.turned_rad

    whole, turned_rad = canvas("solve for the network", None)

    def judge() -> Mapping[str, float]:
        blind, _ = canvas("held-out solve for the network", found.split.solved)
        with passes_of(scene, found, **how) as passes:
            frames = moved(passes, shift=found.shift, gain=found.gain)
            loss, _ = held_out_scores(
                frames,
                blind,
                found.held,
                split=found.split,
                loss=found.holding.loss,
                background=reported_background(found.holding),
            )
        return {"loss": loss}

    loss = journal.settle("network", judge)["loss"]
    warnings = list(_warnings(scene, found, bundle, loss))
    if config.align_phases and turned_rad is None:
        warnings.append("phases were not aligned: no two patches lie near enough to be compared")
    return Improved(
        object=found.held.gauge.object_to_source(whole), loss=loss, turned_rad=turned_rad, warnings=tuple(warnings)
    )


def put_together(
    scene: Scene,
    found: Estimate,
    training: TrainConfig,
    network: GroupNetwork,
    *,
    use: NDArray[np.bool_] | None,
    align: int = 0,
    num_workers: int = 0,
) -> Reassembled:
    """The object of a scan from the patches that a network makes of its groups, one group around each frame.

    Parameters
    ----------
    use : (frame,) bool, the frames that count; None where all do.
    align : power iterations of `reassemble_aligned`; 0 leaves phases as they are.
    """
    optics = group_optics(training, found.held)
    make = patches_with(
        training, network, optics, photons_scale=scene.photons_scale,
        photons_per_frame=found.survey.photons_per_frame,
    )  # fmt: skip
    stream = group_stream(scene.record.path, training, use=use)
    how: Mapping[str, Any] = {"geometry": found.held.geometry, "level": BLANK}
    with torch.no_grad(), closing(TimedBatches(stream, num_workers=num_workers)) as batches:
        mended = (moved_batch(batch, shift=found.shift, gain=found.gain) for batch in batches)
        pieces = placed(mended, make)
        if align:
            n_patches = stream.members.size
            return reassemble_aligned(pieces, optics.light, n_patches=n_patches, iterations=align, **how)
        return reassemble(pieces, optics.light, **how)


class Glance(NamedTuple):
    """An object made of patches alone: (y, x) complex64 in the source's gauge, its [0, 0] at `origin_px` (y, x)."""

    object: NDArray[np.complex64]
    origin_px: tuple[int, int]


def glance(bundle: Bundle, scan: Path | str) -> Glance:
    """The object of the store at `scan` in one pass over its frames: no solve, no refinement, and nothing judges it.

    The amplitudes are of training's scale; the probe is the store's, or the bundle's where there is none.

    Raises
    ------
    BundleError
        The bundle's model makes no patches, or see `Bundle.diffraction_to_obj`.
    NotFoundError, SourceError, IntegrityError, PlanError
        The store cannot be opened or grouped as in training.
    """
    stream = group_stream(Path(scan), bundle.training)
    side, positions = stream.record.arrays["diffraction"].layout.shape[-1], stream.positions[np.unique(stream.members)]
    first, last = (np.floor(edge(positions, axis=0)).astype(int) - side // 2 for edge in (np.min, np.max))
    rows, columns = (last - first + side + 1).tolist()
    geometry = CanvasGeometry(origin=(int(first[0]), int(first[1])), shape=(rows, columns))
    own = "probe" in stream.record.arrays
    probe = torch.from_numpy(read_all(stream.record, "probe")) if own else bundle.probe
    inside = support_slice(probe.shape[-1], group_support(bundle.training, probe))
    light = probe.abs().square().sum(0)
    pieces = placed(stream, lambda batch: torch.from_numpy(bundle.diffraction_to_obj(batch)))
    level = float(bundle.config["gauge"]["blank_in_source"])
    made = reassemble(pieces, light[inside, inside] / light.max(), geometry=geometry, level=level)
    return Glance(made.object.numpy(), geometry.origin)


def group_stream(store: Path, training: TrainConfig, *, use: NDArray[np.bool_] | None = None) -> ScanStream:
    """One group around each frame of a store, formed as in training.

    Raises
    ------
    PlanError
        Such groups cannot be formed from this scan.
    """
    stream = training.stream
    config = StreamConfig(
        batch_size=_GROUPS_AT_ONCE, batches="sequential", gridsize=stream.gridsize, neighbors=stream.neighbors,
        neighbors_within=stream.neighbors_within,
        seed=training.seed,
    )  # fmt: skip
    return ScanStream(store, config, frames=use, labels=False)


def _warnings(scene: Scene, found: Estimate, bundle: Bundle, loss: float) -> Iterator[str]:
    if loss > found.chosen.loss:
        yield (
            f"the network predicts held-out frames worse than the solver alone ({loss:.4f} against "
            f"{found.chosen.loss:.4f} a pixel): it was trained on another kind of object, or can do no "
            "better; take object_solver"
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

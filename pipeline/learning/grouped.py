"""The models that turn groups of frames into patches, `patch` and `cnn`, behind one door: task, network and patches.

What differs between the two is chosen here, so that training and inference know them as one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from pipeline.config import TrainConfig
from pipeline.errors import ConfigError, SchemaError
from pipeline.learning.canvas import BACKGROUND
from pipeline.learning.cnn import Autoencoder, CnnTask, cnn_network, cnn_patches, input_scale
from pipeline.learning.determinism import deterministic
from pipeline.learning.estimate import Estimate
from pipeline.learning.patch import (
    PatchNetwork,
    PatchTask,
    patch_network,
    patch_support,
    patches_of,
    predicted_amplitudes,
)
from pipeline.physics.forward import CanvasGeometry, Optics, make_optics, support_slice
from pipeline.physics.gauge import Gauge
from pipeline.physics.groups import refuse_apart
from pipeline.physics.losses import light_of_probe
from pipeline.physics.passes import Scene
from pipeline.physics.patches import PatchOptics, patch_optics
from pipeline.scan.chunks import read_all
from pipeline.stream.scan_stream import Batch, ScanStream

GroupNetwork: TypeAlias = PatchNetwork | Autoencoder
PatchesOf: TypeAlias = Callable[[Batch], Tensor]


def group_network(config: TrainConfig, *, side: int) -> GroupNetwork:
    """The untrained network of a configuration, for frames of `side` pixels.

    Raises
    ------
    ConfigError
        The network takes no such frames.
    """
    if config.model == "patch":
        return patch_network(config.network, config.patch, seed=config.seed)
    return cnn_network(config.network, side=side, gridsize=config.stream.gridsize, seed=config.seed)


def group_optics(config: TrainConfig, optics: Optics) -> PatchOptics:
    """The optics of a scan for the patches of a model.

    Raises
    ------
    ConfigError
        See `patch_support`.
    """
    return patch_optics(replace(optics, support=group_support(config, optics.probe)))


def group_task(scene: Scene, found: Estimate, config: TrainConfig, *, cluster_size: int) -> GroupTask:
    """The task of a model for groups; probe, positions, gains and gauge are those of the estimate.

    Parameters
    ----------
    cluster_size : groups per cluster in the batches of the stream, as its order has it.

    Raises
    ------
    ConfigError
        See `group_network` and `group_optics`.
    """
    optics = group_optics(config, found.held)
    network = group_network(config, side=scene.side)
    background = BACKGROUND if found.refined == "none" else found.background
    task: PatchTask | CnnTask | LabelTask
    if config.supervised:
        make = patches_with(
            config, network, optics, photons_scale=scene.photons_scale, photons_per_frame=found.survey.photons_per_frame
        )
        task = LabelTask(network=network, patches_of=make, gauge=found.held.gauge)
    elif isinstance(network, PatchNetwork):
        task = PatchTask(
            network=network,
            optics=optics,
            config=config.patch,
            photons_scale=scene.photons_scale,
            loss_name=scene.loss,
            background=background,
            cluster_size=cluster_size,
        )
    else:
        task = CnnTask(
            network=network,
            optics=optics,
            photons_scale=scene.photons_scale,
            scale=input_scale(found.survey.photons_per_frame, side=scene.side),
            loss_name=scene.loss,
            background=background,
        )
    return GroupTask(task=task, shift=found.shift, gain=found.gain)


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupTask:
    """A task on mended batches; `shift` (frame, 2) and `gain` (frame,) float64 as `moved_batch` takes them."""

    task: PatchTask | CnnTask | LabelTask
    shift: Tensor | None
    gain: Tensor | None

    @property
    def network(self) -> nn.Module:
        """The network whose weights are fitted."""
        return self.task.network

    def loss(self, batch: Batch, step: int) -> Tensor:
        """That of the task. Scalar."""
        return self.task.loss(moved_batch(batch, shift=self.shift, gain=self.gain), step)


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelTask:
    """Learning from patches of the true object, `Batch.label` in the source's gauge; no physics judges."""

    network: GroupNetwork
    patches_of: PatchesOf
    gauge: Gauge

    def loss(self, batch: Batch, step: int) -> Tensor:
        """2 x mean error of the amplitude + 4 x that of the phase in rad, over the patches. Scalar.

        The weights are those of PtychoPINN's supervised mode.
        """
        assert batch.label is not None, "stores without labels were refused"
        made = self.patches_of(batch)
        inside = support_slice(batch.label.shape[-1], made.shape[-1])
        label = self.gauge.object_to_solver(batch.label[..., inside, inside])
        return 2 * (made.abs() - label.abs()).abs().mean() + 4 * (made * label.conj()).angle().abs().mean()


def moved_batch(batch: Batch, *, shift: Tensor | None, gain: Tensor | None) -> Batch:
    """The batch as if every frame had stood where it did, in the mean light.

    Parameters
    ----------
    shift : (frame, 2) float64 pixels, added to the positions; None leaves them.
    gain : (frame,) float64, light of each frame over the mean, which its amplitudes are freed of; None leaves them.
    """
    if gain is not None:
        brightness = gain[batch.indices].sqrt().to(batch.diffraction.dtype)
        batch = batch._replace(diffraction=batch.diffraction / brightness[:, :, None, None])
    if shift is None:
        return batch
    positions = batch.positions + shift[batch.indices]
    offsets = positions.mean(1)
    return batch._replace(positions=positions, offsets=offsets, relative=positions - offsets[:, None])


def patches_with(
    config: TrainConfig, network: GroupNetwork, optics: PatchOptics, *, photons_scale: float, photons_per_frame: float
) -> PatchesOf:
    """What makes patches (B, C, S, S) complex64, solver's gauge, of a batch; differentiable by the weights.

    Parameters
    ----------
    config : of the training. photons_scale, photons_per_frame : of the scan that the batches are of.
    """

    def make(batch: Batch) -> Tensor:
        if isinstance(network, PatchNetwork):
            damping = config.patch.damping
            return patches_of(network, batch, optics, photons_scale=photons_scale, damping=damping)
        scale = input_scale(photons_per_frame, side=optics.side)
        return cnn_patches(network, batch, optics, photons_scale=photons_scale, scale=scale)

    return make


def group_support(config: TrainConfig, probe: Tensor) -> int:
    """S, the side of a model's patches in pixels. `probe` (mode, N, N) complex.

    Raises
    ------
    ConfigError
        See `patch_support`.
    """
    if config.model == "patch":
        return patch_support(probe, config.network, config.patch)
    return int(probe.shape[-1]) // 2


def refuse_groups(config: TrainConfig, stream: ScanStream) -> None:
    """Refuse a stream that a model for groups cannot be trained on, before any work. Reads no frame.

    The first epoch's batches stand for all.

    Raises
    ------
    ConfigError
        The network takes no such frames, or no frame of a batch has another to be judged by.
    SchemaError
        Supervised training, and the store has no labels.
    PlanError
        The frames of a cluster lie too far apart to be stitched.
    """
    record = stream.record
    group_network(config, side=record.arrays["diffraction"].layout.shape[1])
    support = group_support(config, torch.from_numpy(read_all(record, "probe")))
    if config.supervised:
        if "label" not in record.arrays:
            raise SchemaError(
                f"{record.path}: supervised training needs patches of the true object, and there is no `label`",
                code="config.labels", hint="leave --supervised out: the frames themselves are enough",
            )  # fmt: skip
        return
    size = stream.order.cluster_size if config.model == "patch" else 1
    if config.model == "patch" and config.patch.leave_out_own and size < 2:
        raise ConfigError(
            "clusters of one group: the model patch judges a frame by groups of its cluster that have not seen it",
            code="config.cluster", hint="a larger --cluster-size, or a larger --batch-size where that is not given",
            keys=("stream.cluster_size", "stream.batch_size"),
        )  # fmt: skip
    if size > 1 or config.stream.gridsize > 1:
        plan = stream.plan(0)
        for step in range(plan.n_steps):
            positions = torch.from_numpy(stream.positions[stream.members[plan.batch(step)]])
            refuse_apart(positions, support=support, cluster_size=size)


@dataclass(frozen=True, kw_only=True, slots=True)
class SeenBatch:
    """A batch beside a trained network, in the gauge that its probe and training's give.

    batch : its `valid` says which pixels count. trained_probe : (mode, N, N) complex64, source's gauge; used where the
        batch has none.
    blank_in_source, photons_scale, photons_per_frame : of the training.
    """

    config: TrainConfig
    network: GroupNetwork
    batch: Batch
    trained_probe: Tensor
    blank_in_source: float
    photons_scale: float
    photons_per_frame: float

    def objects(self) -> Tensor:
        """The patches, (B, C, S, S) complex64, in the source's gauge."""
        gauge, _, patches = self._patches()
        return gauge.object_to_source(patches)

    def amplitudes(self) -> Tensor:
        """The frames that they predict, (B, C, N, N) float32 like `Batch.diffraction`."""
        _, optics, patches = self._patches()
        return predicted_amplitudes(patches, self.batch, optics, photons_scale=self.photons_scale)

    def _patches(self) -> tuple[Gauge, PatchOptics, Tensor]:
        probe = self.trained_probe if self.batch.probe is None else self.batch.probe
        brighter = light_of_probe(probe, None) / light_of_probe(self.trained_probe, None)
        gauge = Gauge(blank_in_source=self.blank_in_source / brighter**0.5)
        side = int(probe.shape[-1])
        geometry = CanvasGeometry(origin=(0, 0), shape=(side, side))  # patches lie on no canvas here
        optics = group_optics(
            self.config, make_optics(probe, gauge=gauge, geometry=geometry, support=side, valid=self.batch.valid)
        )
        make = patches_with(
            self.config, self.network, optics, photons_scale=self.photons_scale,
            photons_per_frame=self.photons_per_frame,
        )  # fmt: skip
        with torch.no_grad(), deterministic(threads=self.config.threads):
            return gauge, optics, make(self.batch)

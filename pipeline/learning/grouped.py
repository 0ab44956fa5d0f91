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
from pipeline.errors import ConfigError
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
from pipeline.physics.losses import light_of_probe
from pipeline.physics.passes import Scene
from pipeline.physics.patches import PatchOptics, patch_optics
from pipeline.stream.scan_stream import Batch

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
    side = optics.probe.shape[-1]
    support = patch_support(optics.probe, config.network, config.patch) if config.model == "patch" else side // 2
    return patch_optics(replace(optics, support=support))


def group_task(scene: Scene, found: Estimate, config: TrainConfig) -> GroupTask:
    """The task of a model for groups; probe, positions and gauge are those of the estimate.

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
        size = config.stream.cluster_size or config.stream.batch_size
        task = PatchTask(
            network=network,
            optics=optics,
            config=config.patch,
            photons_scale=scene.photons_scale,
            loss_name=scene.loss,
            background=background,
            cluster_size=min(size, scene.n_frames),
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
    return GroupTask(task=task, shift=found.shift)


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupTask:
    """A task on batches whose positions are mended: `shift` (frame, 2) float64 is added to those of the store."""

    task: PatchTask | CnnTask | LabelTask
    shift: Tensor | None

    @property
    def network(self) -> nn.Module:
        """The network whose weights are fitted."""
        return self.task.network

    def loss(self, batch: Batch, step: int) -> Tensor:
        """That of the task. Scalar."""
        return self.task.loss(moved_batch(batch, self.shift), step)


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


def moved_batch(batch: Batch, shift: Tensor | None) -> Batch:
    """The batch with a shift of each frame, (frame, 2) float64 pixels, added to its positions; None leaves them."""
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


def refuse_groups(config: TrainConfig, *, side: int, probe: Tensor, labelled: bool) -> None:
    """Refuse a scan that a model for groups cannot be trained on, before any work.

    Parameters
    ----------
    side : of the frames. probe : (mode, N, N) complex. labelled : whether the store has labels.

    Raises
    ------
    ConfigError
    """
    group_network(config, side=side)
    if config.model == "patch":
        patch_support(probe, config.network, config.patch)
    if config.supervised and not labelled:
        raise ConfigError(
            "supervised training needs patches of the true object, and the store has no `label`",
            code="config.labels", hint="leave --supervised out: the frames themselves are enough", keys=("supervised",),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class SeenBatch:
    """A batch beside a trained network, in the gauge that its probe and training's give.

    trained_probe : (mode, N, N) complex64, source's gauge; used where the batch has none.
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
        optics = group_optics(self.config, make_optics(probe, gauge=gauge, geometry=geometry, support=side))
        make = patches_with(
            self.config, self.network, optics, photons_scale=self.photons_scale,
            photons_per_frame=self.photons_per_frame,
        )  # fmt: skip
        with torch.no_grad(), deterministic(threads=self.config.threads):
            return gauge, optics, make(self.batch)

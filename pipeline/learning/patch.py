"""The model `patch`: a frame, or a group of frames, to its patches of object, in one pass and without truth.

Each stage sees what a frame still asks of its patch (`physics.patches.asked_change`) and says how the patch shall
change; the first patch is flat, as bright as the frame. The stages' networks see one member of a group at a time, with
the same weights for all; a group of more than one is stitched together between the stages, by the positions of its
members, and that is how they hear of each other. In training the patches of a cluster of neighbouring groups are
stitched too, each frame is predicted from groups that have not seen it, and the frames are the only judge. Everything
is in the gauge of `physics.gauge`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.config import LossName, NetworkConfig, PatchConfig
from pipeline.errors import ConfigError
from pipeline.learning.networks import UNet, initialise
from pipeline.physics.forward import support_side, to_centre, to_corner
from pipeline.physics.gauge import BLANK, photons
from pipeline.physics.groups import (
    Plots,
    other_groups,
    own_group,
    parts_that_fit,
    plots_of,
    restitched,
    whole_cluster,
)
from pipeline.physics.patches import (
    PatchOptics,
    asked_change,
    flat_patches,
    mean_amplitude,
    patch_fields,
    patch_intensity,
    patch_loss,
)
from pipeline.stream.scan_stream import Batch

_FIRST_INPUTS, _LATER_INPUTS = 5, 7
_CORRECTION: Final = 0.2


class Members(NamedTuple):
    """The members of a batch's groups, F = B C of them in order.

    measured : (F, N, N) float32 photons in FFT order. level : (F,) float32, the flat object as bright as each frame.
    """

    measured: Tensor
    level: Tensor


class PatchNetwork(nn.Module):
    """The stages' networks. Weights are not set: `patch_network` does that."""

    def __init__(self, config: NetworkConfig, *, stages: int) -> None:
        """One network per stage, of the same width, depth and precision."""
        super().__init__()
        self.stages = nn.ModuleList(
            UNet(
                inputs=_LATER_INPUTS if stage else _FIRST_INPUTS,
                width=config.width,
                depth=config.depth,
                bfloat16=config.bfloat16,
            )
            for stage in range(stages)
        )


def patch_support(probe: Tensor, network: NetworkConfig, patch: PatchConfig) -> int:
    """S: the side that holds the wanted share of the probe's energy, and that the network can take.

    Parameters
    ----------
    probe : (mode, N, N) complex.

    Raises
    ------
    ConfigError
        Only more than the whole window would do.
    """
    multiple, side = int(2**network.depth), int(probe.shape[-1])
    support = -(-support_side(probe, energy=patch.support_energy) // multiple) * multiple
    if support > side:
        raise ConfigError(
            f"network.depth = {network.depth} takes patches in multiples of {multiple} px; "
            f"of a probe of {side} x {side} px, {support} would be needed",
            code="patch.support",
            hint="a smaller --set network.depth",
        )
    return support


def patch_network(network: NetworkConfig, patch: PatchConfig, *, seed: int) -> PatchNetwork:
    """The network of the model `patch`, untrained: every patch is flat."""
    made, first = PatchNetwork(network, stages=patch.stages), 0
    for stage in made.stages:
        first = initialise(stage, seed=seed, first=first)
    return made


def members_of(batch: Batch, optics: PatchOptics, *, photons_scale: float) -> Members:
    """The members of a batch as photons in FFT order.

    Parameters
    ----------
    photons_scale : amplitude times it is sqrt(photon).
    """
    measured = to_corner(photons(batch.diffraction.flatten(0, 1), photons_scale=photons_scale))
    return Members(measured=measured, level=mean_amplitude(measured, optics))


def unrolled(
    network: PatchNetwork, members: Members, optics: PatchOptics, plots: Plots, *, damping: float
) -> list[Tensor]:
    """The patches after each stage, in order of members. Each (F, S, S) complex64.

    Parameters
    ----------
    plots : of the groups; asked for stitching where they have more than one member.
    """
    grouped = len(plots.group) > len(plots.cluster)
    view = own_group(plots) if grouped else None
    patches, found = flat_patches(members.level, optics), []
    for number, stage in enumerate(network.stages):
        if number and view is not None:
            patches = restitched(patches, members.level, plots, view, optics)
        asked = asked_change(patches, members.level, members.measured, optics, damping=damping)
        seen = _inputs(asked, patches if number else None, members.level, optics)
        out = stage(seen.contiguous(memory_format=torch.channels_last)).to(members.level.dtype)
        patches = patches + _CORRECTION * torch.view_as_complex(out.permute(0, 2, 3, 1).contiguous())
        found.append(patches)
    return found


def _inputs(asked: Tensor, patches: Tensor | None, level: Tensor, optics: PatchOptics) -> Tensor:
    """What a stage's network sees. (F, 5 or 7, S, S) float32.

    5 Re g, 5 Im g, |P| / max |P|, log(|P| / max |P| + 1e-3) / 7 + 0.5, 5 (c - 0.7), and from the second stage on
    5 Re(o - c), 5 Im(o - c).
    """
    modulus = optics.light.sqrt()
    known = torch.stack([modulus, (modulus + 1e-3).log() / 7 + 0.5])
    around = (level - BLANK)[:, None, None, None]
    planes = [
        5 * torch.view_as_real(asked).permute(0, 3, 1, 2),
        known.expand(len(asked), -1, -1, -1),
        (5 * around).expand(-1, 1, *modulus.shape),
    ]
    if patches is not None:
        planes.append(5 * torch.view_as_real(patches - level[:, None, None]).permute(0, 3, 1, 2))
    return torch.cat(planes, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchTask:
    """Everything that a training step needs besides its batch; `loss(batch, step)` is all that `fit` knows.

    background : b of the loss, photons per pixel. cluster_size : groups per cluster, consecutive in a batch.
    """

    network: PatchNetwork
    optics: PatchOptics
    config: PatchConfig
    photons_scale: float
    loss_name: LossName
    background: float
    cluster_size: int

    def loss(self, batch: Batch, step: int) -> Tensor:
        """The weighted sum of the stages' mean losses of the frames. Scalar."""
        config = self.config
        members = members_of(batch, self.optics, photons_scale=self.photons_scale)
        plots = plots_of(batch.positions, self.optics, cluster_size=self.cluster_size)
        view = other_groups(plots, batch.indices) if config.leave_out_own else whole_cluster(plots)
        total = members.level.new_zeros(())
        stages = unrolled(self.network, members, self.optics, plots, damping=config.damping)
        for number, patches in enumerate(stages, 1):
            seen = restitched(patches, members.level, plots, view, self.optics)
            loss = patch_loss(
                seen, members.level, members.measured, self.optics, loss=self.loss_name, background=self.background
            )
            total = total + (1.0 if number == len(stages) else config.earlier_weight) * loss
        return total


def patches_of(
    network: PatchNetwork, batch: Batch, optics: PatchOptics, *, photons_scale: float, damping: float
) -> Tensor:
    """The patches that a network makes of groups, differentiable. (B, C, S, S) complex64, at `Batch.positions`."""

    def made(part: slice) -> Tensor:
        some = _some(batch, part)
        members = members_of(some, optics, photons_scale=photons_scale)
        plots = plots_of(some.positions, optics, cluster_size=1)
        return unrolled(network, members, optics, plots, damping=damping)[-1]

    patches = torch.cat([made(part) for part in parts_that_fit(batch.positions, support=optics.support)])
    return patches.view(*batch.indices.shape, optics.support, optics.support)


def _some(batch: Batch, part: slice) -> Batch:
    """Some groups of a batch, with what is used of them here."""
    return batch._replace(
        diffraction=batch.diffraction[part], positions=batch.positions[part], indices=batch.indices[part]
    )


def predicted_amplitudes(patches: Tensor, batch: Batch, optics: PatchOptics, *, photons_scale: float) -> Tensor:
    """The frames that patches predict, those of a group stitched first. (B, C, N, N) real, as `Batch.diffraction`.

    Parameters
    ----------
    patches : (B, C, S, S) complex, of the model `patch` or `cnn`.
    """

    def predicted(part: slice) -> Tensor:
        some, seen = _some(batch, part), patches[part].flatten(0, 1)
        level = members_of(some, optics, photons_scale=photons_scale).level
        if some.indices.shape[1] > 1:
            plots = plots_of(some.positions, optics, cluster_size=1)
            seen = restitched(seen, level, plots, own_group(plots), optics)
        return patch_intensity(patch_fields(seen, level, optics)).sqrt() / photons_scale

    with torch.no_grad():
        amplitude = torch.cat([predicted(part) for part in parts_that_fit(batch.positions, support=optics.support)])
    return to_centre(amplitude).view_as(batch.diffraction)

"""The model `cnn`: the classic autoencoder of the field, from the amplitudes of a group to its patches of object.

One encoder, one decoder for the amplitude and one for the phase; the members of a group are channels, in and out. No
physics goes in but a scale: frames are multiplied by one number, so that their mean energy is (N/2)^2. Physics judges
what comes out, patches of the central N/2 pixels, in the gauge of `physics.gauge`; those of a group are stitched
first, by the positions of its members.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from pipeline.config import LossName, NetworkConfig
from pipeline.errors import ConfigError
from pipeline.learning.networks import initialise
from pipeline.physics.forward import to_centre, to_corner
from pipeline.physics.gauge import BLANK, photons
from pipeline.physics.groups import own_group, plots_of, restitched
from pipeline.physics.losses import without_bad
from pipeline.physics.patches import PatchOptics, mean_amplitude, patch_loss
from pipeline.stream.scan_stream import Batch

_BOTTOM: Final = 8
"""Side in pixels of the coarsest scale."""

SIDES: Final = (32, 64, 128, 256)
"""Sides of frames that the network takes."""


class Autoencoder(nn.Module):
    """Amplitudes of a group to patches of its members: (B, C, N, N) -> (B, C, N/2, N/2) complex.

    Encoder: conv3x3, ReLU, twice, then 2x2 max-pooling, from N down to 8 px, 4 x `width` channels at the coarsest scale
    and half as many on each finer one. Decoders: conv3x3, ReLU, twice, then nearest up-sampling, from 8 px to N/2,
    `width` channels at the finest. Heads: amplitude 1.4 sigmoid, phase pi tanh, so that an untrained network, whose
    last layers are 0, says the blank object.
    """

    def __init__(self, *, side: int, members: int, width: int, bfloat16: bool) -> None:
        """Weights are not set: `cnn_network` does that."""
        super().__init__()
        self.in_bfloat16 = bfloat16
        scales = int(math.log2(side // _BOTTOM))
        down = [max(4 * width >> scale, 1) for scale in reversed(range(scales))]
        up = [width << scale for scale in reversed(range(scales - 1))]
        self.encoder = _ladder([members, *down], nn.MaxPool2d(2))
        self.amplitude = nn.Sequential(
            *_ladder([down[-1], *up], nn.Upsample(scale_factor=2)), nn.Conv2d(up[-1], members, 3, padding=1)
        )
        self.phase = nn.Sequential(
            *_ladder([down[-1], *up], nn.Upsample(scale_factor=2)), nn.Conv2d(up[-1], members, 3, padding=1)
        )

    def forward(self, amplitude: Tensor) -> Tensor:
        """Patches, for amplitudes of mean energy (N/2)^2 with zero frequency at [N//2, N//2]."""
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.in_bfloat16):
            code = self.encoder(amplitude.contiguous(memory_format=torch.channels_last))
            modulus, angle = self.amplitude(code), self.phase(code)
        real = amplitude.dtype
        return torch.polar(2 * BLANK * modulus.to(real).sigmoid(), math.pi * angle.to(real).tanh())


def _ladder(channels: list[int], between: nn.Module) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(channels):
        for count in (inputs, outputs):
            layers += [nn.Conv2d(count, outputs, 3, padding=1), nn.ReLU()]
        layers.append(between)
    return nn.Sequential(*layers)


def cnn_network(config: NetworkConfig, *, side: int, gridsize: int, seed: int) -> Autoencoder:
    """The network of the model `cnn`, untrained: every patch is the blank object.

    Parameters
    ----------
    config : `depth` is not used, the side of the frames decides it.

    Raises
    ------
    ConfigError
        The network takes no frames of this side.
    """
    if side not in SIDES:
        raise ConfigError(
            f"the model cnn takes frames of {', '.join(map(str, SIDES))} px, and the scan has {side} x {side}",
            code="cnn.frame_side",
            hint="--model patch",
        )
    network = Autoencoder(side=side, members=gridsize**2, width=config.width, bfloat16=config.bfloat16)
    first = initialise(network.encoder, seed=seed, zero_last=False)
    for decoder in (network.amplitude, network.phase):
        first = initialise(decoder, seed=seed, first=first)
    return network


def input_scale(photons_per_frame: float, *, side: int) -> float:
    """What sqrt(photon) is multiplied by for the network: (N/2) / sqrt(mean photons of a frame)."""
    return side / 2 / math.sqrt(photons_per_frame)


def cnn_patches(
    network: Autoencoder, batch: Batch, optics: PatchOptics, *, photons_scale: float, scale: float
) -> Tensor:
    """The patches that a network makes of groups. (B, C, N/2, N/2) complex64, at `Batch.positions`.

    Parameters
    ----------
    scale : see `input_scale`.
    """
    amplitude = batch.diffraction * (photons_scale * scale)
    if optics.bad is not None:
        amplitude = without_bad(amplitude, to_centre(optics.bad))
    found: Tensor = network(amplitude)
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class CnnTask:
    """Everything that a training step needs besides its batch; `loss(batch, step)` is all that `fit` knows.

    optics : of a support of N/2. background : b of the loss, photons per pixel. scale : see `input_scale`.
    """

    network: Autoencoder
    optics: PatchOptics
    photons_scale: float
    scale: float
    loss_name: LossName
    background: float

    def loss(self, batch: Batch, step: int) -> Tensor:
        """Mean loss of the frames, those of a group predicted from its stitched patches. Scalar."""
        optics = self.optics
        found = cnn_patches(self.network, batch, optics, photons_scale=self.photons_scale, scale=self.scale)
        patches = found.flatten(0, 1)
        measured = to_corner(photons(batch.diffraction.flatten(0, 1), photons_scale=self.photons_scale))
        level = mean_amplitude(measured, optics)
        if batch.indices.shape[1] > 1:
            plots = plots_of(batch.positions, optics, cluster_size=1)
            patches = restitched(patches, level, plots, own_group(plots), optics)
        return patch_loss(patches, level, measured, optics, loss=self.loss_name, background=self.background)

"""The networks, and how their weights begin. No norm layers, so what they see needs no statistics of a batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pipeline.seeding import Purpose, rng_for

_RESIDUAL = 0.5


class UNet(nn.Module):
    """Convolutions on `depth` + 1 scales with skips: (B, inputs, y, x) -> (B, 2, y, x), sides multiples of 2^depth.

    Each level: x + 0.5 relu(conv3x3 x), twice at the bottom; widths double on the way down (conv 2x2, stride 2), the
    way up adds the skip (transposed conv 2x2). The last convolution begins at 0, so the untrained network says 0.
    """

    def __init__(self, *, inputs: int, width: int, depth: int, bfloat16: bool = True) -> None:
        """Weights are not set: `initialise` does that. With `bfloat16`, float32 weights multiply in that precision."""
        super().__init__()
        self.in_bfloat16 = bfloat16
        widths = [width * 2**level for level in range(depth + 1)]
        self.first = nn.Conv2d(inputs, width, 3, padding=1)
        self.down_blocks = nn.ModuleList(nn.Conv2d(w, w, 3, padding=1) for w in widths[:-1])
        self.down = nn.ModuleList(nn.Conv2d(w, 2 * w, 2, stride=2) for w in widths[:-1])
        self.bottom = nn.ModuleList(nn.Conv2d(widths[-1], widths[-1], 3, padding=1) for _ in range(2))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in reversed(widths[:-1]))
        self.up_blocks = nn.ModuleList(nn.Conv2d(w, w, 3, padding=1) for w in reversed(widths[:-1]))
        self.last = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The correction, real and imaginary part. Dtype of the weights, or bfloat16."""
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.in_bfloat16):
            return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu_()
        skips = []
        for block, down in zip(self.down_blocks, self.down, strict=True):
            x = torch.add(x, block(x).relu_(), alpha=_RESIDUAL)
            skips.append(x)
            x = down(x).relu_()
        for block in self.bottom:
            x = torch.add(x, block(x).relu_(), alpha=_RESIDUAL)
        for up, block in zip(self.up, self.up_blocks, strict=True):
            x = up(x).add_(skips.pop()).relu_()
            x = torch.add(x, block(x).relu_(), alpha=_RESIDUAL)
        out: Tensor = self.last(x)
        return out


def initialise(network: nn.Module, *, seed: int, first: int = 0, zero_last: bool = True) -> int:
    """Set all weights from the seed: Kaiming normal for ReLU, transposed ones N(0, 1/fan_in), biases and last layer 0.

    He et al. 2015, "Delving deep into rectifiers". The numbers come from `seeding`, never from torch's generator.
    `first` numbers the first layer, so that parts of one network differ; the number after the last is returned.
    Without `zero_last`, the last layer of such a part is as the others.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    with torch.no_grad():
        for number, layer in enumerate(layers, first):
            transposed = isinstance(layer, nn.ConvTranspose2d)
            fan_in = layer.in_channels * (1 if transposed else math.prod(layer.kernel_size))
            deviation = math.sqrt((1 if transposed else 2) / fan_in)
            drawn = rng_for(seed, Purpose.WEIGHTS, number).normal(0, deviation, tuple(layer.weight.shape))
            layer.weight.copy_(torch.from_numpy(drawn))
            assert layer.bias is not None
            layer.bias.zero_()
        if zero_last:
            layers[-1].weight.zero_()
    return first + len(layers)

"""The network of a configuration, whichever model it is."""

from __future__ import annotations

from typing import TypeAlias

from pipeline.config import TrainConfig
from pipeline.learning.grouped import GroupNetwork, group_network
from pipeline.learning.networks import UNet
from pipeline.learning.prepare import canvas_network

Network: TypeAlias = UNet | GroupNetwork


def network_of(config: TrainConfig, *, side: int) -> Network:
    """The untrained network of a configuration, for frames of `side` pixels.

    Raises
    ------
    ConfigError
        The network takes no such frames.
    """
    if config.model == "canvas":
        return canvas_network(config.network, seed=config.seed)
    return group_network(config, side=side)

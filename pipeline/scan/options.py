"""The command line's spelling of a `Declaration`, the same wherever a legacy NPZ is accepted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from pipeline.scan.declaration import CHOICES

_HELP = {
    "key": "which member holds the frames, where both are there",
    "axes": "order of the stack's axes: f frames, y rows, x columns",
    "quantity": "what a float stack holds",
    "contract": "data-001: float means amplitude",
    "positions": "unit of the coordinates",
    "position_origin": "what a coordinate points at: pixel n/2 of the frame's window (default), its exact middle "
    "n/2-0.5, or its first pixel",
}


def declaration_options(body: Callable[..., Any]) -> Callable[..., Any]:
    """Add --key, --axes, --quantity, --contract, --positions, --pixel-size-m and --position-origin."""
    for name, help_text in reversed(_HELP.items()):
        flag = "--" + name.replace("_", "-")
        body = click.option(flag, name, type=click.Choice(CHOICES[name], case_sensitive=False), help=help_text)(body)
    pixel = click.option("--pixel-size-m", type=float, help="size of an object pixel in metres")
    return pixel(body)

"""The command line's spelling of how a scan is sampled, the same for training and for going through it."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import click

from pipeline.config import NeighborsWithin, StreamConfig
from pipeline.errors import ConfigError

NAMES: Final = (
    "batch_size", "batches", "cluster_size", "gridsize", "n_groups", "n_subsample", "neighbors", "neighbors_within",
    "allow_oversampling",
)  # fmt: skip
_OF_SEVERAL: Final = ("neighbors", "neighbors_within", "allow_oversampling")
"""What says how groups of more than one frame are formed."""


def sampling_options(
    *, batches: Sequence[str], shown: Mapping[str, str] | None = None
) -> Callable[[Callable[..., Any]], Any]:
    """Add an option for each of `NAMES`; one that is not given is None.

    Parameters
    ----------
    batches : the ways of making batches to choose from.
    shown : defaults that the help shows in place of those of `StreamConfig`.
    """
    defaults = StreamConfig()

    def option(name: str, about: str, **how: Any) -> Callable[[Callable[..., Any]], Any]:
        default = (shown or {}).get(name, getattr(defaults, name))
        told = "" if default is None or default is False else f" [default: {default}]"
        return click.option(_flag(name), name, default=None, help=about + told, **how)

    options = (
        option("batch_size", "groups in a batch; with gridsize 1 a group is a frame", type=int),
        option("batches", "how batches are made", type=click.Choice(batches)),
        option("cluster_size", "groups in a cluster [default: the batch]", type=int),
        option("gridsize", "g: a group is g x g neighbouring frames", type=int),
        option("n_groups", "groups that batches are made of [default: one per frame]", type=int),
        option("n_subsample", "frames kept before grouping, drawn by the seed [default: all]", type=int),
        option("neighbors", "K: members of a group come from this many nearest frames; gridsize > 1", type=int),
        option(
            "neighbors_within",
            "look for these in a window of chunks, read once an epoch however long the scan [default: the whole scan]",
            type=click.Choice(typing.get_args(NeighborsWithin)),
        ),
        option("allow_oversampling", "more groups than frames; gridsize > 1", is_flag=True),
    )

    def decorate(body: Callable[..., Any]) -> Any:
        for add in reversed(options):
            body = add(body)
        return body

    return decorate


def given_sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling options among `options` that were given, by their names in `StreamConfig`."""
    return {name: options[name] for name in NAMES if options.get(name) is not None}


def sampling_flags(given: Mapping[str, Any]) -> dict[str, tuple[str, object]]:
    """Given sampling options as `resolve_options` takes them, under `stream`."""
    return {f"stream.{name}": (_flag(name), value) for name, value in given.items()}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def refuse_idle(given: Mapping[str, Any], *, gridsize: int, batches: str) -> None:
    """Refuse options that say nothing where a group is one frame, or where batches are not made of clusters.

    Raises
    ------
    ConfigError
    """
    for name in _OF_SEVERAL:
        if name in given and gridsize == 1:
            raise ConfigError(
                f"{_flag(name)} says how groups of several frames are formed, and gridsize is 1",
                code="config.gridsize",
                hint="leave it out, or give --gridsize 2",
            )
    if "cluster_size" in given and batches != "cluster":
        raise ConfigError(
            f"--cluster-size says how clusters are formed, and batches are {batches}",
            code="config.batches",
            hint="leave it out, or give --batches cluster",
        )

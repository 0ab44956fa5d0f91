"""Every knob of a run on one screen: frozen trees, which `pipeline.settings` fills from TOML and dotted keys.

A default lives here and nowhere else. Nothing here imports an array library, so that options can be shown and refused
before any work.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeAlias

from pipeline.errors import ConfigError

LossName: TypeAlias = Literal["poisson", "poisson-background", "amplitude"]
PriorName: TypeAlias = Literal["none", "quadratic", "tv"]
PriorChoice: TypeAlias = Literal["auto", "quadratic", "tv"]
RefineChoice: TypeAlias = Literal["auto", "none", "probe", "probe,positions"]
BatchMode: TypeAlias = Literal["shuffled", "cluster", "sequential"]
NeighborsWithin: TypeAlias = Literal["window"]
ModelName: TypeAlias = Literal["canvas", "patch", "cnn"]

_CANVAS_DEPTH: Final = 2
_FOUND: Final = {"setting": False}
"""Of a field that a run finds out by itself: no file and no option names it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamConfig:
    """How a scan is streamed. Counts of groups; see docs/conventions.md for every term.

    n_subsample : frames kept before anything else, drawn by the seed; None keeps all.
    neighbors_within : where the members of a group come from: None for the whole scan, or the seed's window of chunks
        that follow each other in the store, so that no chunk is read more than once an epoch.
    """

    batch_size: int = 64
    batches: BatchMode = "shuffled"
    cluster_size: int | None = None
    gridsize: int = 1
    n_groups: int | None = None
    n_subsample: int | None = None
    neighbors: int = 7
    neighbors_within: NeighborsWithin | None = None
    allow_oversampling: bool = False
    seed: int = 0
    epochs: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class SolverConfig:
    """What a run may change of the solver; in the gauge of `physics.gauge`, where the blank object is 0.7.

    The recipe's other constants stand where they act: TV smoothing 0.02 and the peak of 1,600 photons that lam refers
    to in `prior`; 24 frequencies, floor 0.01 of h(k) and 0.05 of |y| in `precondition`.

    loss : the residual; found, no setting: "amplitude" where the photon scale is unknown, "poisson-background" where a
        refinement takes b for light.
    iterations : passes with the chosen prior.
    start_iterations : passes with `start_weight` before a TV prior takes over, but not where a refined probe is held.
    start_weight : lam of the quadratic prior of these, no unit.
    step : length of a step in units of the preconditioned update u'.
    background : b in the residual, photons per pixel; `refine.background` where the probe is refined.
    support_energy : share of the probe's energy inside the support S; a refined probe fills its window.
    quantile : which quantile of den scales the step; 0.99 for the recipe's q99(den).
    batch_pixels : pixels of all modes in one batch of a pass; it changes float32 sums, so it belongs to the result.
    """

    loss: LossName = field(default="poisson", metadata=_FOUND)
    iterations: int = 40
    start_iterations: int = 30
    start_weight: float = 0.0005
    step: float = 0.6
    background: float = 0.05
    support_energy: float = 0.999
    quantile: float = 0.99
    batch_pixels: int = 1 << 20

    def __post_init__(self) -> None:
        _in_range(
            "solver",
            self,
            loss=self.loss in typing.get_args(LossName),
            iterations=self.iterations >= 0,
            start_iterations=self.start_iterations >= 0,
            start_weight=0 <= self.start_weight < math.inf,
            step=0 < self.step < 2,
            background=0 < self.background < math.inf,
            support_energy=0 < self.support_energy <= 1,
            quantile=0 < self.quantile <= 1,
            batch_pixels=self.batch_pixels >= 1,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PriorConfig:
    """Which prior the object gets: `name` "auto" tries every candidate, a kind only its own.

    weight : lam, no unit, which leaves nothing to choose; None where held-out frames choose.
    choice_iterations : passes of each candidate where the probe is known.
    """

    name: PriorChoice = "auto"
    weight: float | None = None
    choice_iterations: int = 40

    def __post_init__(self) -> None:
        _in_range(
            "prior",
            self,
            weight=self.weight is None or 0 <= self.weight < math.inf,
            choice_iterations=self.choice_iterations >= 1,
        )
        if self.weight is not None and self.name == "auto":
            raise ConfigError(
                "prior.weight belongs to a kind of prior, and prior.name is auto", code="config.contradiction",
                hint="--prior quadratic or --prior tv", keys=("prior.weight", "prior.name"),
            )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class RefineConfig:
    """Whether and how probe, modes, positions and gains are refined; schedule and other constants: `physics.refine`.

    what : "auto" decides by evidence.
    modes : of the refined probe; None is the store's own number, 4 where evidence decided.
    iterations : passes of a refinement, after `start_passes` of ePIE.
    choice_iterations : passes of each candidate prior with the refined probe held.
    background : b, photons per pixel that count as light.
    probe_step : of the probe, in units of its preconditioned update.
    max_step_px, max_shift_px : of a position, in one step before the mean of all is removed, and in all; object pixels.
    """

    what: RefineChoice = "auto"
    modes: int | None = None
    iterations: int = 40
    start_passes: int = 5
    choice_iterations: int = 20
    background: float = 0.1
    probe_step: float = 0.6
    max_step_px: float = 0.5
    max_shift_px: float = 1.5

    def __post_init__(self) -> None:
        _in_range(
            "refine",
            self,
            modes=self.modes is None or self.modes >= 1,
            iterations=self.iterations >= 1,
            start_passes=self.start_passes >= 0,
            choice_iterations=self.choice_iterations >= 1,
            background=0 < self.background < math.inf,
            probe_step=0 < self.probe_step < 2,
            max_step_px=0 < self.max_step_px < math.inf,
            max_shift_px=0 < self.max_shift_px < math.inf,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class FitConfig:
    """How weights are fitted: AdamW without weight decay, a linear warm-up, then half a cosine.

    steps : of the network; the cosine spans them all. epochs : in their place, where given.
    learning_rate, last_rate : the largest and the last.
    warmup : steps of the linear rise. beta1, beta2 : AdamW's memory of gradient and square.
    """

    steps: int = 1000
    epochs: int | None = None
    learning_rate: float = 4e-3
    last_rate: float = 1e-6
    warmup: int = 30
    beta1: float = 0.9
    beta2: float = 0.99

    def __post_init__(self) -> None:
        _in_range(
            "fit",
            self,
            steps=self.steps >= 0,
            epochs=self.epochs is None or self.epochs >= 1,
            learning_rate=0 < self.learning_rate < math.inf,
            last_rate=0 <= self.last_rate < math.inf,
            warmup=self.warmup >= 0,
            beta1=0 <= self.beta1 < 1,
            beta2=0 <= self.beta2 < 1,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkConfig:
    """The network: channels of its finest scale, how many coarser scales it has, and its precision while it computes.

    bfloat16 : multiply in 8 bits of mantissa, add in float32; twice as fast or slower, as the processor is made.
    """

    width: int = 24
    depth: int = 2
    bfloat16: bool = True

    def __post_init__(self) -> None:
        _in_range("network", self, width=self.width >= 1, depth=1 <= self.depth <= 4)


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchConfig:
    """The model `patch`: an object patch improved in stages, each by what its frame still asks for.

    stages : networks, one after the other. damping : of the asked-for change, in units of max |P|^2.
    earlier_weight : of the loss of every stage but the last, whose own is 1.
    leave_out_own : a frame is predicted from the patches of others alone; otherwise its noise is learned.
    support_energy : share of the probe's energy inside the support S; outside it the object is taken to be flat.
    """

    stages: int = 2
    damping: float = 0.1
    earlier_weight: float = 0.3
    leave_out_own: bool = True
    support_energy: float = 0.999

    def __post_init__(self) -> None:
        _in_range(
            "patch",
            self,
            stages=self.stages >= 1,
            damping=0 < self.damping < math.inf,
            earlier_weight=0 <= self.earlier_weight < math.inf,
            support_energy=0 < self.support_energy <= 1,
        )


_IDLE: Final[Mapping[str, object]] = {
    "supervised": False,
    "network.depth": 1,
    **{f"stream.{f.name}": f.default for f in dataclasses.fields(StreamConfig)},
    **{f"patch.{f.name}": f.default for f in dataclasses.fields(PatchConfig)},
}
"""What stands where a setting says nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """A training: from a store's frames to a bundle. Fields that a reconstruction has too mean the same.

    The defaults are those of the model canvas; `training_defaults` has each model's own.

    stream : batches of the network; `seed` is that of the run, `epochs` follows from the steps.
    supervised : learn from the store's labels instead of its photons; canvas cannot.
    patch : of the model patch alone.
    deterministic : an operation that cannot promise its bits is an error.
    """

    model: ModelName = "canvas"
    supervised: bool = False
    deterministic: bool = True
    seed: int = 0
    threads: int = 1
    num_workers: int = 0
    photons_per_frame: float | None = None
    prior: PriorConfig = field(default_factory=PriorConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    stream: StreamConfig = field(default_factory=lambda: StreamConfig(batch_size=192, batches="cluster"))
    network: NetworkConfig = field(default_factory=NetworkConfig)
    patch: PatchConfig = field(default_factory=PatchConfig)
    fit: FitConfig = field(default_factory=FitConfig)

    def __post_init__(self) -> None:
        _in_range(
            "",
            self,
            seed=self.seed >= 0,
            threads=self.threads >= 1,
            num_workers=self.num_workers >= 0,
            photons_per_frame=self.photons_per_frame is None or 0 < self.photons_per_frame < math.inf,
        )
        if self.model == "canvas" and self.stream.gridsize != 1:
            raise ConfigError(
                f"the model canvas works on single frames, and stream.gridsize is {self.stream.gridsize}",
                code="config.gridsize", hint="--gridsize 1", keys=("stream.gridsize", "model"),
            )  # fmt: skip
        if self.model == "canvas":
            _in_range("network", self.network, depth=self.network.depth == _CANVAS_DEPTH)
        if self.stream.batches == "sequential":
            raise ConfigError(
                "stream.batches is sequential; a training needs batches in random order",
                code="config.batches", hint="--batches shuffled or cluster", keys=("stream.batches",),
            )  # fmt: skip
        if self.model == "patch" and self.stream.batches != "cluster" and not self.supervised:
            raise ConfigError(
                f"the model patch judges a frame by its neighbours, and stream.batches is {self.stream.batches}",
                code="config.batches", hint="--batches cluster", keys=("stream.batches", "model"),
            )  # fmt: skip
        self._refuse_idle()

    def _refuse_idle(self) -> None:
        """Refuse what would have no effect on this training."""
        idle = {
            "stream.seed": "the order follows from seed",
            "stream.epochs": "the length follows from fit.steps or fit.epochs",
        }
        if self.stream.batches != "cluster":
            idle["stream.cluster_size"] = f"batches are {self.stream.batches}, not made of clusters"
        if self.model != "patch":
            idle |= {f"patch.{f.name}": f"the model is {self.model}" for f in dataclasses.fields(PatchConfig)}
        elif self.supervised:
            idle |= dict.fromkeys(("patch.leave_out_own", "patch.earlier_weight"), "labels judge, and not other frames")
        if self.model == "cnn":
            idle["network.depth"] = "the side of the frames decides how deep the model cnn is"
        if self.stream.gridsize == 1:
            of_several = ("stream.neighbors", "stream.neighbors_within", "stream.allow_oversampling")
            idle |= dict.fromkeys(of_several, f"this training of {self.model} works on single frames")
        if self.model == "canvas":
            idle["supervised"] = "the model canvas learns from photons alone and takes no labels"
            idle["stream.n_subsample"] = "the model canvas solves with every frame of the scan"
        for key, why in idle.items():
            if value_at(self, key) != _IDLE[key]:
                raise ConfigError(
                    f"{key} would have no effect: {why}",
                    code="config.idle", hint="leave it out", keys=(key, "model"),
                )  # fmt: skip

    @property
    def solving(self) -> ReconstructConfig:
        """The part that a reconstruction of the same scan has."""
        return ReconstructConfig(
            seed=self.seed, threads=self.threads, num_workers=self.num_workers,
            photons_per_frame=self.photons_per_frame, prior=self.prior, solver=self.solver, refine=self.refine,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class ReconstructConfig:
    """A reconstruction: from a store's frames to its object.

    photons_per_frame : declared mean; None where the store's own scale holds, or none is known.
    align_phases : power iterations that turn the patches of a network to each other's phase; 0 leaves them as they are.
    """

    seed: int = 0
    threads: int = 1
    num_workers: int = 0
    photons_per_frame: float | None = None
    align_phases: int = 0
    prior: PriorConfig = field(default_factory=PriorConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)

    def __post_init__(self) -> None:
        _in_range(
            "",
            self,
            seed=self.seed >= 0,
            threads=self.threads >= 1,
            num_workers=self.num_workers >= 0,
            align_phases=self.align_phases >= 0,
            photons_per_frame=self.photons_per_frame is None or 0 < self.photons_per_frame < math.inf,
        )


def training_defaults(model: str = "canvas", *, gridsize: int = 1) -> TrainConfig:
    """A training of a model with everything else as it was measured best; where nothing is known of a model, canvas.

    `patch` sees 32 frames a step and `cnn` 16 groups; the others' probe is refined only where it is asked for.
    """
    stream, known = replace(StreamConfig(), gridsize=gridsize), RefineConfig(what="none")
    if model == "patch":
        return TrainConfig(
            model="patch",
            refine=known,
            stream=replace(stream, batch_size=max(32 // gridsize**2, 1), batches="cluster"),
            network=NetworkConfig(width=24, depth=1, bfloat16=False),
            fit=FitConfig(steps=2050, learning_rate=2e-3, warmup=50),
        )
    if model == "cnn":
        return TrainConfig(
            model="cnn",
            refine=known,
            stream=replace(stream, batch_size=16),
            network=NetworkConfig(width=64, depth=1, bfloat16=False),
            fit=FitConfig(epochs=50, learning_rate=1e-3, warmup=0),
        )
    return TrainConfig()


def _in_range(place: str, values: object, **good: bool) -> None:
    for name, holds in good.items():
        if not holds:
            key = f"{place}.{name}" if place else name
            raise ConfigError(f"{key} = {getattr(values, name)} is out of range", code="config.range", keys=(key,))


def value_at(config: object, key: str) -> object:
    """What stands at a dotted key of a tree."""
    for name in key.split("."):
        config = getattr(config, name)
    return config

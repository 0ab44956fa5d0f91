"""What the study varies and what it holds fixed: one frozen value, checked, from a TOML file or as it always was."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from pipeline.config import ModelName, TrainConfig
from pipeline.errors import ConfigError, PlanError
from pipeline.scan.sealed import read_document
from pipeline.settings import flat, read_table, refuse_unknown, resolve_config
from pipeline.study.places import dose_of

DESIGN_NAME: Final = "design.json"
BASELINE: Final = "baseline"
"""All frames of a dose, on single frames: what the views are held against."""

_OWN: Final = (
    "model", "seed", "stream.gridsize", "stream.neighbors", "photons_per_frame", "num_workers", "deterministic",
)  # fmt: skip
"""Settings of a training that the design, its jobs or the command line say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """Which frames a network gets to see.

    overlap : f, of neighbouring probes, which stands for the spacing (1 - f) patch. s_img : share that a draw keeps.
    """

    name: str
    overlap: float
    s_img: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Frames whose coordinate on `axis` lies below lo + fraction (hi - lo) are for training, all others for testing."""

    axis: Literal["y", "x"] = "y"
    fraction: float = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Seeds:
    """Of photons; of groups, batches and weights; of the draw that makes a view."""

    simulation: int = 42
    grouping: int = 123
    subsampling: int = 456


@dataclass(frozen=True, kw_only=True, slots=True)
class Metrics:
    """How results are judged.

    n_groups, neighbor_count, probe_diameter : of the overlap metrics; the diameter in units of the frame's side.
    The others are for comparing reconstructions.
    """

    n_groups: int = 512
    neighbor_count: int = 6
    probe_diameter: float = 0.6
    ms_ssim_sigma: float = 1.0
    emphasise: Literal["phase", "amplitude"] = "phase"
    report: Literal["phase", "amplitude"] = "amplitude"
    frc_threshold: float = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """Which model is trained, and dotted settings in place of its own."""

    model: ModelName = "patch"
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyDesign:
    """The whole study.

    doses : photons per frame, whole numbers. neighbor_count : K, from which the members of a group are drawn.
    patch_px : what the spacings of views are in units of, pixels.
    """

    doses: tuple[float, ...] = (1e3, 1e4, 1e5)
    gridsizes: tuple[int, ...] = (1, 2)
    neighbor_count: int = 7
    patch_px: float = 128.0
    views: tuple[View, ...] = (
        View(name="dense", overlap=0.7, s_img=0.8),
        View(name="sparse", overlap=0.2, s_img=0.2),
    )
    split: Split = field(default_factory=Split)
    seeds: Seeds = field(default_factory=Seeds)
    metrics: Metrics = field(default_factory=Metrics)
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        for size in self.gridsizes:
            if size > 1 and self.neighbor_count < size**2:
                raise PlanError(
                    f"OVERSAMPLING-001: gridsize {size} needs at least {size**2} neighbours to choose from, and "
                    f"neighbor_count is {self.neighbor_count}",
                    code="plan.oversampling_001",
                    hint="neighbor_count = 7",
                )
        _refuse_empty(doses=self.doses, gridsizes=self.gridsizes)
        for key, good in {
            "doses": all(1 <= dose < 1e12 and dose == int(dose) for dose in self.doses),
            "gridsizes": all(size >= 1 for size in self.gridsizes),
            "patch_px": 0 < self.patch_px < 1e6,
            "split.fraction": 0 < self.split.fraction < 1,
            "seeds": all(seed >= 0 for seed in asdict(self.seeds).values()),
            "metrics.n_groups": self.metrics.n_groups >= 1,
            "metrics.neighbor_count": self.metrics.neighbor_count >= 1,
            "metrics.probe_diameter": 0 < self.metrics.probe_diameter <= 2,
            "metrics.ms_ssim_sigma": 0 <= self.metrics.ms_ssim_sigma < 100,
            "metrics.frc_threshold": 0 < self.metrics.frc_threshold < 1,
            **{f"views.{view.name}.overlap": 0 <= view.overlap < 1 for view in self.views},
            **{f"views.{view.name}.s_img": 0 < view.s_img <= 1 for view in self.views},
            **{f"views.{view.name}": view.name.isidentifier() and view.name != BASELINE for view in self.views},
        }.items():
            if not good:
                raise ConfigError(f"{key} is out of range", code="study.range", keys=(key,))
        for key, values in {"doses": self.doses, "gridsizes": self.gridsizes}.items():
            if len(set(values)) < len(values):
                raise ConfigError(f"{key} names one of them twice", code="study.range", keys=(key,))
        self.config_of(min(self.gridsizes) if self.training.model == "canvas" else max(self.gridsizes))

    def spacing_px(self, view: View) -> float:
        """How far apart the frames of a view are kept by the rule `spacing`: (1 - f) patch, pixels."""
        return round((1 - view.overlap) * self.patch_px, 6)

    def view(self, name: str) -> View:
        """The view of this name.

        Raises
        ------
        ConfigError
            There is none; the nearest is suggested.
        """
        names = [view.name for view in self.views]
        refuse_unknown(name, names, where="the design's views: ")
        return self.views[names.index(name)]

    def with_model(self, model: ModelName | None) -> StudyDesign:
        """The same study with another model; None changes nothing."""
        return self if model is None else replace(self, training=replace(self.training, model=model))

    def config_of(self, gridsize: int) -> TrainConfig:
        """The configuration of a training of this gridsize, before its job and the command line say their own.

        Raises
        ------
        ConfigError
            The model cannot have this gridsize, or a setting is unknown or out of range.
        """
        return resolve_config(
            TrainConfig,
            settings={
                **self.training.settings, "model": self.training.model, "stream.gridsize": gridsize,
                **({"stream.neighbors": self.neighbor_count} if gridsize > 1 else {}), "seed": self.seeds.grouping,
            },
        )  # fmt: skip

    def document(self) -> dict[str, Any]:
        """The design as JSON has it; `design_from` reads it back."""
        views = {
            view.name: {"overlap": view.overlap, "s_img": view.s_img, "spacing_px": self.spacing_px(view)}
            for view in self.views
        }
        whole = {**asdict(self), "views": views, "doses": list(self.doses), "gridsizes": list(self.gridsizes)}
        return dict(json.loads(json.dumps(whole)))


def design_for(root: Path, file: Path | None) -> StudyDesign:
    """The design in a file that was named, else the one that a phase C root keeps, else that of always.

    Parameters
    ----------
    root : of phase C, or the folder of one dose in it.

    Raises
    ------
    ConfigError, PlanError
        See `read_design`.
    """
    kept = (root if dose_of(root) is None else root.parent) / DESIGN_NAME
    if file is None and not kept.is_file():  # a root of the old system
        return StudyDesign()
    return read_design(kept if file is None else file)


def read_design(path: Path) -> StudyDesign:
    """The design in a TOML file, or in the design.json that a study keeps; what it leaves out is as it always was.

    Raises
    ------
    ConfigError, PlanError
        A key is unknown, a value has another type or is out of range, or a group cannot be filled.
    """
    table = read_document(path) if path.suffix == ".json" else read_table(path)
    return design_from(table, where=f"{path}: ")


def design_from(table: Mapping[str, Any], *, where: str = "") -> StudyDesign:
    """The design of nested tables; see `read_design`.

    >>> design_from({"doses": [1000], "views": {"dense": {"overlap": 0.7, "s_img": 1.0}}}).views[0].s_img
    1.0
    """
    known = list(StudyDesign.__dataclass_fields__)
    for key in table:
        refuse_unknown(key, known, where=where)
    given: dict[str, Any] = {}
    for key, value in table.items():
        if key in ("doses", "gridsizes"):
            given[key] = tuple(_numbers(key, value, whole=key == "gridsizes", where=where))
        elif key == "views":
            given[key] = tuple(_view(name, one, where=where) for name, one in _table(key, value, where).items())
        elif key == "training":
            given[key] = _training(_table(key, value, where), where=where)
        elif key in _SECTIONS:
            section = partial(resolve_config, _SECTIONS[key], settings=_table(key, value, where))
            given[key] = _said(section, where=f"{where}{key}: ")
        else:
            (number,) = _numbers(key, [value], whole=key == "neighbor_count", where=where)
            given[key] = number
    design: StudyDesign = _said(partial(StudyDesign, **given), where=where)
    for name, one in table.get("views", {}).items():
        if "spacing_px" in one and one["spacing_px"] != design.spacing_px(design.view(name)):
            raise ConfigError(
                f"{where}views.{name}.spacing_px = {one['spacing_px']} contradicts (1 - overlap) patch_px = "
                f"{design.spacing_px(design.view(name))}",
                code="study.contradiction",
                hint="leave spacing_px out",
            )
    return design


_SECTIONS: Final[Mapping[str, type[Any]]] = {"split": Split, "seeds": Seeds, "metrics": Metrics}


def _said(make: Callable[[], Any], *, where: str) -> Any:
    """What `make` gives; its errors begin with the place."""
    try:
        return make()
    except (ConfigError, PlanError) as exc:
        raise type(exc)(f"{where}{exc.message}", code=exc.code, hint=exc.hint) from exc


def _table(key: str, value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}{key} = {value!r:.40}; expected a table", code="config.type", keys=(key,))
    return value


def _numbers(key: str, values: object, *, whole: bool, where: str) -> list[float | int]:
    wanted = int if whole else (int, float)
    fit = isinstance(values, list) and all(isinstance(v, wanted) and not isinstance(v, bool) for v in values)
    if not fit:
        kind = "whole numbers" if whole else "numbers"
        raise ConfigError(f"{where}{key} = {values!r:.60}; expected {kind}", code="config.type", keys=(key,))
    assert isinstance(values, list)
    return [value if whole else float(value) for value in values]


def _view(name: str, value: object, *, where: str) -> View:
    place, needed = f"{where}views.{name}", ("overlap", "s_img")
    table = _table(f"views.{name}", value, where)
    for key in table:
        refuse_unknown(key, (*needed, "spacing_px"), where=f"{place}: ")
    missing = [key for key in needed if key not in table]
    if missing:
        raise ConfigError(f"{place}: has no {' and no '.join(missing)}", code="study.view", keys=(f"views.{name}",))
    overlap, s_img = _numbers(f"views.{name}", [table[key] for key in needed], whole=False, where=where)
    return View(name=name, overlap=overlap, s_img=s_img)


def _training(table: Mapping[str, Any], *, where: str) -> Training:
    for key in table:
        refuse_unknown(key, ("model", "settings"), where=f"{where}training: ")
    settings = flat(_table("training.settings", table.get("settings", {}), where))
    taken = sorted(set(settings) & set(_OWN))
    if taken:
        raise ConfigError(
            f"{where}training.settings: {', '.join(taken)} is said elsewhere",
            code="study.said_elsewhere",
            hint="training.model, seeds.grouping, neighbor_count, gridsizes, and options of `study train`",
        )
    model = table.get("model", Training().model)
    if model not in ("canvas", "patch", "cnn"):
        raise ConfigError(f"{where}training.model = {model!r:.40}; expected canvas, patch or cnn", code="config.type")
    return Training(model=model, settings=settings)


def _refuse_empty(**lists: Sequence[object]) -> None:
    for key, values in lists.items():
        if not values:
            raise ConfigError(f"{key} is empty", code="study.range", keys=(key,))

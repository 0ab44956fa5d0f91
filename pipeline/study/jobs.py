"""The matrix of trainings: every dose with all its frames on single ones, and with each view in groups. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import TrainConfig
from pipeline.errors import ConfigError
from pipeline.scan.audit_study import job_folder
from pipeline.study.design import BASELINE, StudyDesign
from pipeline.study.places import dose_data, dose_name, view_data


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One training: `place` is its folder below the artifact root, `train_data` and `test_data` stores or NPZ files."""

    dose: float
    view: str
    gridsize: int
    train_data: Path
    test_data: Path | None

    @property
    def place(self) -> Path:
        """dose_N/VIEW/gsG."""
        return Path(job_folder({"dose": self.dose, "view": self.view, "gridsize": self.gridsize}))

    @property
    def name(self) -> str:
        """What people call it: dose_1000/dense/gs2."""
        return self.place.as_posix()

    @property
    def short(self) -> str:
        """As the lines of a training name it: dense/dose=1e+03."""
        return f"{self.view}/dose={self.dose:.0e}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Filters:
    """Which jobs are wanted; None wants all."""

    dose: float | None = None
    view: str | None = None
    gridsize: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Matrix:
    """The jobs that are wanted, and those of them that cannot be for want of frames: {dose, view, gridsize, reason}."""

    jobs: tuple[Job, ...]
    skipped: tuple[dict[str, Any], ...]


def slots(design: StudyDesign, filters: Filters) -> list[tuple[float, str, int]]:
    """Dose, view and gridsize of every wanted job, doses ascending, the baseline first.

    Raises
    ------
    ConfigError
        A view is asked for that the design has not, or a dose that is no number above 0.
    """
    if filters.dose is not None and not 0 < filters.dose < math.inf:
        raise ConfigError(f"--dose {filters.dose}: expected photons per frame", code="study.range", keys=("dose",))
    names = [BASELINE, *(view.name for view in design.views)]
    if filters.view is not None and filters.view not in names:
        raise ConfigError(
            f"--view {filters.view}: the design has {', '.join(names)}", code="study.unknown_view", keys=("view",)
        )
    whole = [
        (dose, view, gridsize)
        for dose in sorted(design.doses)
        for view in names
        for gridsize in design.gridsizes
        if (view == BASELINE) == (gridsize == 1)
    ]
    return [
        (dose, view, gridsize)
        for dose, view, gridsize in whole
        if filters.dose in (None, dose) and filters.view in (None, view) and filters.gridsize in (None, gridsize)
    ]


def plan_jobs(design: StudyDesign, filters: Filters, *, phase_c_root: Path, phase_d_root: Path) -> Matrix:
    """The wanted jobs whose frames are there: those of the baseline in the first root, of views in the second.

    Raises
    ------
    ConfigError
        See `slots`.
    """
    jobs, skipped = [], []
    for dose, view, gridsize in slots(design, filters):
        found = {
            split: dose_data(phase_c_root / dose_name(dose), split)
            if view == BASELINE
            else view_data(phase_d_root, dose, view, split)
            for split in ("train", "test")
        }
        if found["train"] is None:
            root = phase_c_root if view == BASELINE else phase_d_root
            reason = f"no frames for training in {root / dose_name(dose)}"
            skipped.append({"dose": dose, "view": view, "gridsize": gridsize, "reason": reason})
            continue
        jobs.append(Job(dose=dose, view=view, gridsize=gridsize, train_data=found["train"], test_data=found["test"]))
    return Matrix(jobs=tuple(jobs), skipped=tuple(skipped))


def configs_of(design: StudyDesign, jobs: Sequence[Job]) -> dict[int, TrainConfig]:
    """The configuration of each gridsize among the jobs.

    Raises
    ------
    ConfigError
        The model cannot have one of them; names all jobs that are refused.
    """
    configs: dict[int, TrainConfig] = {}
    for size in dict.fromkeys(job.gridsize for job in jobs):
        try:
            configs[size] = design.config_of(size)
        except ConfigError as exc:
            refused = ", ".join(job.name for job in jobs if job.gridsize == size)
            raise ConfigError(
                f"{refused}: {exc.message}", code=exc.code, hint="--model patch or cnn, or --gridsize 1", keys=exc.keys
            ) from exc
    return configs


def skips_in_words(matrix: Matrix) -> list[str]:
    """A line for each job that cannot be."""
    return [f"{job_folder(skip)}: skipped: {skip['reason']}" for skip in matrix.skipped]

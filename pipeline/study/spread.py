"""Independent tasks carried out: one after the other, or spread over the processes of a dask cluster."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import dask

from pipeline.cli import environment_fault
from pipeline.errors import ConfigError, EnvironmentFault, InterruptedRun, PipelineError, TerminatedRun

Task = TypeVar("Task")
Result = TypeVar("Result")

_CONNECT_S: Final = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Crew:
    """Who does the work: this process, `workers` processes of its own, or those of the dask scheduler at an address.

    num_workers : processes that each of them starts to read frames, which those of a foreign cluster may not do.
    """

    workers: int | None = None
    scheduler: str | None = None
    num_workers: int = 0

    def __post_init__(self) -> None:
        if self.workers is not None and self.scheduler is not None:
            raise ConfigError(
                "--workers starts a cluster and --scheduler uses one", code="study.crew", hint="one of both"
            )
        if self.scheduler is not None and self.num_workers:
            raise ConfigError(
                "--num-workers needs processes that may start others, and those behind --scheduler may not",
                code="study.crew", hint="--num-workers 0",
            )  # fmt: skip
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"--workers {self.workers}; at least 1", code="config.range")

    @property
    def alone(self) -> bool:
        """Whether this process does all of it."""
        return self.workers is None and self.scheduler is None


def spread(
    tasks: Sequence[Task], work: Callable[[Task], Result], *, crew: Crew
) -> Iterator[tuple[Task, Result | PipelineError]]:
    """Each task with its result or its error, as they come in; the results do not depend on who works.

    A task whose process dies is done again by another, three times at most. `work` is a function of a module.

    Raises
    ------
    InterruptedRun, TerminatedRun
        A signal stopped the work.
    EnvironmentFault
        There is no scheduler at the address, or the extra `distributed` is missing.
    """
    if crew.alone or not tasks:
        for task in tasks:
            yield task, _done(work, task)
        return
    from distributed import Client, KilledWorker, as_completed

    with ExitStack() as stack:
        stack.enter_context(_our_ways())
        where = crew.scheduler or stack.enter_context(_cluster(min(crew.workers or 1, len(tasks))))
        try:
            client = stack.enter_context(Client(where, timeout=_CONNECT_S, set_as_default=False))  # type: ignore[no-untyped-call]
        except (OSError, ValueError) as exc:
            raise EnvironmentFault(
                f"{crew.scheduler}: no dask scheduler answers: {exc}", code="study.scheduler",
                hint="tcp://HOST:PORT of a running `dask scheduler`, or --workers N",
            ) from exc  # fmt: skip
        futures = [client.submit(_done, work, task, pure=False) for task in tasks]
        by_key = dict(zip([future.key for future in futures], tasks, strict=True))
        for future in as_completed(futures, loop=client.loop):  # type: ignore[no-untyped-call]
            task = by_key[future.key]
            try:
                yield task, future.result()
            except KilledWorker as exc:
                yield (
                    task,
                    EnvironmentFault(f"the process at work died again and again: {exc}", code="study.worker_died"),
                )


@contextmanager
def _cluster(n_workers: int) -> Iterator[Any]:
    """Processes of our own with a thread each, which take no orders from other machines."""
    from distributed import LocalCluster

    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch,
        LocalCluster(  # type: ignore[no-untyped-call]  # dask has no types
            n_workers=n_workers, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0",
            memory_limit=None, local_directory=scratch,
        ) as cluster,
    ):  # fmt: skip
        yield cluster


@contextmanager
def _our_ways() -> Iterator[None]:
    """Nothing is said of connections and processes that come and go; those may have children, which read frames."""
    log = logging.getLogger("distributed")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with dask.config.set({"logging": {"distributed": "critical"}, "distributed.worker.daemon": False}):
            yield
    finally:
        log.setLevel(before)


def _done(work: Callable[[Task], Result], task: Task) -> Result | PipelineError:
    """What the work gives, its failure a value: one task must not take the others with it."""
    try:
        with dask.config.set(scheduler="threads"):  # of this process: no chunk of a task goes through the cluster
            return work(task)
    except (InterruptedRun, TerminatedRun):
        raise
    except PipelineError as exc:
        return exc
    except (OSError, MemoryError) as exc:
        return environment_fault(exc)

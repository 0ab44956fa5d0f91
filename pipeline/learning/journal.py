"""The phases of a long run, each gone on from where it was stopped; what is finished is not done again."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from torch import Tensor

from pipeline.learning.checkpoint import Identity, load_checkpoint, pack_state, save_checkpoint, unpack_state

State = TypeVar("State")
Progress = Callable[[int], None]
Hearing = Callable[[str, Mapping[str, Any]], None]
"""Called with the name of a phase and what is noted of a pass, before it is counted: what `watch` made of its state;
how many `passes` this sitting has made in the phase, in `wall_s` seconds, `wait_s` of them waiting for data."""

SAVE_EVERY_S: Final = 2.0
_SAVE_SHARE: Final = 0.05
"""A state is written when 2 s have passed since the last one and 20 times what writing that took, and whenever a run is
told to stop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """What a phase cost, over all the sittings it took: its own passes, seconds, those spent waiting for data."""

    name: str
    passes: int
    cpu_s: float
    wall_s: float
    wait_s: float


class Journal:
    """Checkpoints of a run's phases in one folder, one file each.

    A phase is an iterator of states, any of which it can be gone on from to the same bits; so when a state is written
    has no influence on the result.
    """

    def __init__(
        self,
        folder: Path,
        *,
        identity: Identity,
        tell: Callable[[str, int], Progress],
        hear: Hearing = lambda name, noted: None,
        log: Path | None = None,
        save_every_s: float = SAVE_EVERY_S,
    ) -> None:
        """States are read and written under the `identity` of the run, which their bits depend on.

        `tell(name, passes)` gives what is called with each number of passes done; `log` takes a line for each.
        """
        folder.mkdir(exist_ok=True)
        self._folder, self._identity = folder, identity
        self._tell, self._hear, self._save_every_s = tell, hear, save_every_s
        self._log, self._lines, self._cut_already = log, 0, False
        self._phases: dict[str, Phase] = {}

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases behind the run, in order."""
        return tuple(self._phases.values())

    def carry_on(
        self,
        name: str,
        kind: type[State],
        *,
        passes: int,
        begin: Callable[[], State],
        pack: Callable[[State], tuple[Mapping[str, Tensor], Mapping[str, int]]] = pack_state,
        unpack: Callable[[type[State], Mapping[str, Tensor], Mapping[str, int]], State] = unpack_state,
        states: Callable[[State], Iterator[State]],
        done: Callable[[State], int],
        waited: Callable[[], float],
        watch: Callable[[State], Mapping[str, Any]] = lambda state: {},
    ) -> tuple[State, list[Mapping[str, Any]]]:
        """The last state of a phase, begun or gone on with, and what `watch` made of the states on the way.

        Parameters
        ----------
        passes : how many are behind the last state.
        begin : the state before the first pass. states : all states after a given one.
        pack, unpack : a state as tensors and integers, and back.
        done : passes behind a state.
        waited : a clock of the seconds spent waiting for data.
        watch : JSON values to keep of a state, by name; they go to the log as well.
        """
        path, identity = self._folder / f"{name}.safetensors", {**self._identity, "phase": name}
        saved = load_checkpoint(path, identity=identity)
        if saved is None:
            state, kept, before = begin(), list[Mapping[str, Any]](), [0.0, 0.0, 0.0]
            first = done(state)
        else:
            state, kept, before = unpack(kind, saved[0], saved[1]["numbers"]), saved[1]["kept"], saved[1]["spent"]
            first = saved[1]["first"]
            self._lines = max(self._lines, saved[1]["lines"])
        lines = self._lines
        advance, begun = self._tell(name, passes), _clocks(waited)
        advance(begun_at := done(state))
        due_at = begun[1] + self._save_every_s

        def spent() -> list[float]:
            return [old + now - start for old, now, start in zip(before, _clocks(waited), begun, strict=True)]

        def save() -> float:
            at = time.perf_counter()
            tensors, numbers = pack(state)
            facts = {"numbers": numbers, "kept": kept, "spent": spent(), "lines": lines, "first": first}
            save_checkpoint(path, tensors, facts, identity=identity)
            now = time.perf_counter()
            return now + max(self._save_every_s, (now - at) / _SAVE_SHARE)

        try:
            for following in states(state):
                noted = watch(following)
                self._append(name, done(following), noted)
                # together, so that no signal finds one without the others
                state, kept, lines = following, [*kept, noted] if noted else kept, self._lines
                _, wall_s, wait_s = (now - start for now, start in zip(_clocks(waited), begun, strict=True))
                self._hear(name, {**noted, "passes": done(state) - begun_at, "wall_s": wall_s, "wait_s": wait_s})
                advance(1)
                if time.perf_counter() > due_at:
                    due_at = save()
        except (KeyboardInterrupt, SystemExit):
            save()
            raise
        save()
        cpu_s, wall_s, wait_s = spent()
        self._phases[name] = Phase(name=name, passes=done(state) - first, cpu_s=cpu_s, wall_s=wall_s, wait_s=wait_s)
        return state, kept

    def settle(self, name: str, find: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Facts that are found once and read back afterwards; the phases behind them are kept beside.

        The state of a phase of the same name is of no use after them and is removed.
        """
        path, identity = self._folder / f"{name}.facts.safetensors", {**self._identity, "phase": name}
        saved = load_checkpoint(path, identity=identity)
        if saved is not None:
            self._phases |= {phase["name"]: Phase(**phase) for phase in saved[1]["phases"]}
            self._lines = max(self._lines, saved[1]["lines"])
            self._forget(name)
            facts: dict[str, Any] = saved[1]["facts"]
            return facts
        facts = dict(find())
        behind = {"phases": [asdict(phase) for phase in self.phases], "lines": self._lines}
        save_checkpoint(path, {}, {"facts": facts, **behind}, identity=identity)
        self._forget(name)
        return facts

    def _append(self, name: str, number: int, noted: Mapping[str, Any]) -> None:
        """A line of the log: phase, running index over the whole run, passes done in the phase, what was noted."""
        if self._log is not None:
            if not self._cut_already:
                self._cut()
            line = json.dumps({"phase": name, "index": self._lines, "done": number, **noted}, allow_nan=False)
            append_whole(self._log, f"{line}\n".encode())
        self._lines += 1

    def _cut(self) -> None:
        """Drop the lines of the log behind the state that this sitting goes on from."""
        self._cut_already = True
        if self._log is not None and self._log.exists():
            with self._log.open("rb+") as file:
                for _ in range(self._lines):
                    file.readline()
                file.truncate(file.tell())

    def _forget(self, name: str) -> None:
        (self._folder / f"{name}.safetensors").unlink(missing_ok=True)


def append_whole(path: Path, line: bytes) -> None:
    """Append a line, or nothing of it.

    Raises
    ------
    OSError
        It cannot be written; the file is as it was.
    """
    with path.open("ab", buffering=0) as file:
        size, left = file.tell(), memoryview(line)
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(size)
            raise


def _clocks(waited: Callable[[], float]) -> list[float]:
    """CPU seconds of this process, wall seconds, seconds of waiting."""
    return [time.process_time(), time.perf_counter(), waited()]

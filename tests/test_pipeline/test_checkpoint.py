"""A state on disk is whole, of this run, or refused by name."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from hypothesis import given  # noqa: E402  # behind the check that torch is there
from hypothesis import strategies as st  # noqa: E402

from pipeline.errors import EnvironmentFault, IntegrityError  # noqa: E402
from pipeline.learning.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from pipeline.learning.journal import Journal  # noqa: E402

RUN = {"store_sha256": "ab", "configuration": "cd", "bundle_sha256": None}
TENSORS = {"canvas": torch.arange(6.0).reshape(2, 3).to(torch.complex64), "turn": torch.tensor(2.0)}
FACTS = {"numbers": {"iteration": 7}, "kept": [0.1]}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "solve.safetensors"
    save_checkpoint(path, TENSORS, FACTS, identity=RUN)
    return path


def same(loaded: object) -> bool:
    assert isinstance(loaded, tuple)
    tensors, facts = loaded
    return facts == FACTS and all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_what_was_saved_comes_back(saved: Path) -> None:
    assert same(load_checkpoint(saved, identity=RUN))
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


@given(data=st.data())
def test_a_changed_bit_anywhere_is_refused_or_changes_nothing(
    saved: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(saved.read_bytes())
    place = data.draw(st.integers(0, 8 * len(content) - 1))
    content[place // 8] ^= 1 << place % 8
    path = tmp_path_factory.mktemp("changed") / saved.name
    path.write_bytes(content)
    with contextlib.suppress(IntegrityError):
        assert same(load_checkpoint(path, identity=RUN))  # a space among those that pad the head


def test_a_changed_number_is_refused_as_damage(saved: Path, tmp_path: Path) -> None:
    content = bytearray(saved.read_bytes())
    content[-1] ^= 1
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(IntegrityError, match="SHA-256"):
        load_checkpoint(tmp_path / "a", identity=RUN)


@pytest.mark.parametrize("changed", [{"configuration": "ef"}, {"bundle_sha256": "ab"}, {"version of torch": "1"}])
def test_a_state_of_another_run_is_refused_and_what_differs_is_named(saved: Path, changed: dict[str, str]) -> None:
    with pytest.raises(IntegrityError, match=f"{next(iter(changed))} differ"):
        load_checkpoint(saved, identity={**RUN, **changed})


def test_a_state_that_cannot_be_written_is_a_fault_of_the_machine_and_keeps_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "solve.safetensors"
    save_checkpoint(path, TENSORS, FACTS, identity=RUN)
    (tmp_path / f".{path.name}.partial").mkdir()  # what a full disk does to a file, a folder in its place does too
    with pytest.raises(EnvironmentFault, match=r"solve\.safetensors: a state cannot be written"):
        save_checkpoint(path, {}, {}, identity=RUN)
    assert same(load_checkpoint(path, identity=RUN))


# --- the journal: what was done before a stop is not done again


@dataclass(frozen=True, kw_only=True, slots=True)
class Count:
    done: int


class Killed(BaseException):
    """A stop that asks nobody, as SIGKILL is one."""


def journal(folder: Path, *, save_every_s: float = 0.0, run: dict[str, str | None] = RUN) -> Journal:
    return Journal(folder, identity=run, tell=lambda name, passes: lambda n: None, save_every_s=save_every_s)


def counted(book: Journal, name: str, made: list[int], *, stop: int | None = None) -> Count:
    def states(start: Count) -> Iterator[Count]:
        for number in itertools.count(start.done + 1):
            if number > 5:
                return
            if number == stop:
                raise Killed
            made.append(number)
            yield Count(done=number)

    state, _ = book.carry_on(
        name, Count, passes=5, begin=lambda: Count(done=0), states=states, done=lambda s: s.done, waited=lambda: 0.0
    )
    return state


def test_states_are_written_on_the_way_so_that_a_kill_costs_only_what_came_after(tmp_path: Path) -> None:
    made: list[int] = []
    with pytest.raises(Killed):
        counted(journal(tmp_path), "solve", made, stop=4)
    assert counted(journal(tmp_path), "solve", made) == Count(done=5)
    assert made[:3] == [1, 2, 3]
    assert made[3] > 1  # the first pass is written at once here, later ones when twenty times that time has passed


def test_a_state_is_not_written_after_every_pass(tmp_path: Path) -> None:
    made: list[int] = []
    with pytest.raises(Killed):
        counted(journal(tmp_path, save_every_s=60), "solve", made, stop=4)
    counted(journal(tmp_path), "solve", made)
    assert made == [1, 2, 3, 1, 2, 3, 4, 5]


def test_a_state_of_another_phase_or_configuration_is_not_gone_on_from(tmp_path: Path) -> None:
    counted(journal(tmp_path), "solve", [])
    (tmp_path / "evidence.safetensors").write_bytes((tmp_path / "solve.safetensors").read_bytes())
    with pytest.raises(IntegrityError, match="phase differ"):
        counted(journal(tmp_path), "evidence", [])
    with pytest.raises(IntegrityError, match="configuration differ"):
        counted(journal(tmp_path, run={**RUN, "configuration": "else"}), "solve", [])


def test_facts_of_another_configuration_are_not_read_back(tmp_path: Path) -> None:
    assert journal(tmp_path).settle("choice", lambda: {"loss": 1.0}) == {"loss": 1.0}
    assert journal(tmp_path).settle("choice", lambda: {"loss": 2.0}) == {"loss": 1.0}
    with pytest.raises(IntegrityError, match="configuration differ"):
        journal(tmp_path, run={**RUN, "configuration": "else"}).settle("choice", lambda: {"loss": 2.0})


def test_a_folder_of_states_that_was_removed_is_made_again(tmp_path: Path) -> None:
    assert counted(journal(tmp_path / "checkpoints"), "solve", []) == Count(done=5)

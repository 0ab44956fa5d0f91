"""A target appears whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import EnvironmentFault, NotFoundError, TargetExistsError
from pipeline.scan.retile import retiled
from pipeline.scan.staging import staged_file, staged_folder
from tests.builders import make_counts, tree_bytes


def test_a_folder_appears_at_the_end_with_all_its_files(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "t") as stage:
        (stage / "a").write_text("1")
        assert not (tmp_path / "t").exists()
    assert tree_bytes(tmp_path) == {"t/a": b"1"}


def test_a_failure_leaves_no_trace(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), staged_folder(tmp_path / "t") as stage:
        (stage / "a").write_text("1")
        raise RuntimeError
    with pytest.raises(RuntimeError), staged_file(tmp_path / "f") as file:
        file.write_text("1")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_overwriting_leaves_the_old_content(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "t") as stage:
        (stage / "a").write_text("old")
    with pytest.raises(RuntimeError), staged_folder(tmp_path / "t", overwrite=True):
        raise RuntimeError
    assert tree_bytes(tmp_path) == {"t/a": b"old"}


def test_a_target_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(TargetExistsError), staged_folder(tmp_path / "t"):
        (tmp_path / "t").mkdir()
        (tmp_path / "t" / "theirs").write_text("2")
    assert tree_bytes(tmp_path) == {"t/theirs": b"2"}
    with pytest.raises(TargetExistsError), staged_file(tmp_path / "f"):
        (tmp_path / "f").write_text("theirs")
    assert (tmp_path / "f").read_text() == "theirs"


def test_a_dangling_link_at_the_target_counts_as_existing(tmp_path: Path) -> None:
    (tmp_path / "t").symlink_to(tmp_path / "nowhere")
    with pytest.raises(TargetExistsError), staged_folder(tmp_path / "t"):
        pass


def test_a_missing_parent_is_told_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as failure, staged_folder(tmp_path / "no" / "t"):
        pass
    assert "mkdir" in str(failure.value.hint)


def test_published_files_have_the_permissions_of_ordinary_ones(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    (tmp_path / "folder").mkdir()
    with staged_file(tmp_path / "f") as file:
        file.write_text("1")
    with staged_folder(tmp_path / "t"):
        pass
    mode = {p.name: p.stat().st_mode for p in tmp_path.iterdir()}
    assert mode["f"] == mode["plain"]
    assert mode["t"] == mode["folder"]


def test_spooling_asks_for_space_before_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("pipeline.scan.retile.shutil.disk_usage", lambda path: real._replace(free=10))
    counts = make_counts()
    with (
        pytest.raises(EnvironmentFault) as failure,
        retiled([counts], counts.shape, counts.dtype, in_axis=0, out_axis=1, beside=tmp_path / "t"),
    ):
        pass
    assert failure.value.exit_code == 8
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("exchange", [True, False], ids=["renameat2", "two renames"])
@pytest.mark.parametrize("staged", [staged_folder, staged_file])
def test_overwriting_replaces_the_old_content_and_leaves_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool, staged: Callable[..., Any]
) -> None:
    if not exchange:
        monkeypatch.setattr("pipeline.scan.staging._rename", lambda source, target, flags: False)

    def write(text: str, *, overwrite: bool) -> None:
        with staged(tmp_path / "t", overwrite=overwrite) as stage:
            (stage / "a" if staged is staged_folder else stage).write_text(text)

    write("old", overwrite=False)
    with pytest.raises(TargetExistsError):
        write("new", overwrite=False)
    write("new", overwrite=True)
    assert list(tree_bytes(tmp_path).values()) == [b"new"]
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_an_interrupt_while_swapping_leaves_the_old_or_the_new_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.scan import staging

    real = staging._rename

    def interrupted(source: Path, target: Path, flags: int) -> bool:
        done = real(source, target, flags)
        if flags == staging._EXCHANGE:
            raise KeyboardInterrupt
        return done

    with staged_folder(tmp_path / "t") as stage:
        (stage / "a").write_text("old")
    monkeypatch.setattr(staging, "_rename", interrupted)
    with pytest.raises(KeyboardInterrupt), staged_folder(tmp_path / "t", overwrite=True) as stage:
        (stage / "a").write_text("new")
    assert tree_bytes(tmp_path) == {"t/a": b"new"}


def test_a_link_and_a_thing_of_another_kind_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    for name in ("folder", "link"):
        with pytest.raises(TargetExistsError), staged_file(tmp_path / name, overwrite=True) as stage:
            stage.write_text("1")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "link"]

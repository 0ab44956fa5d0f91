"""A list of stores is metadata only; a broken store is a row that says why."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from catalogs.entry import entry_of_store
from catalogs.index import find_items, list_entries
from catalogs.page import page, page_data
from catalogs.table import table
from pipeline.errors import NotFoundError, SourceError
from pipeline.scan.store import write_scan
from tests.builders import make_scan
from tests.guards import run_command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three stores, one of them broken, one in a sub-folder, and things that are none."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "notes.txt").write_text("no store")
    write_scan(make_scan(), tmp_path / "a.zarr")
    write_scan(make_scan(n_frames=11), tmp_path / "deep" / "er" / "b.zarr")
    write_scan(make_scan(), tmp_path / ".hidden" / "c.zarr")
    shutil.copytree(tmp_path / "a.zarr", tmp_path / "broken.zarr")
    (tmp_path / "broken.zarr" / "diffraction" / "c.0.0.0").unlink()
    return tmp_path


def test_every_store_below_is_found_once_in_order(folder: Path) -> None:
    names = [p.name for p in find_items([folder, folder / "deep"])]
    assert names == ["a.zarr", "broken.zarr", "b.zarr"]


def test_a_store_itself_is_a_root(folder: Path) -> None:
    assert find_items([folder / "a.zarr"]) == [folder / "a.zarr"]


def test_a_root_that_is_not_there_is_not_found(folder: Path) -> None:
    with pytest.raises(NotFoundError):
        find_items([folder / "none"])


def test_a_row_says_what_the_store_says(folder: Path) -> None:
    entry = entry_of_store(folder / "deep" / "er" / "b.zarr")
    assert (entry.problem, entry.frames, entry.frame_shape, entry.quantity) == (None, 11, (8, 8), "counts")
    assert (entry.probe_modes, entry.has_object, entry.verdict) == (1, False, "pass")


def test_a_broken_store_is_a_row_that_says_why(folder: Path) -> None:
    entry = entry_of_store(folder / "broken.zarr")
    assert entry.problem is not None
    assert "diffraction chunk 0 (frames 0-6)" in entry.problem
    text = table(list_entries([folder]))
    assert "BROKEN" in text
    assert len(text.splitlines()) == 4
    assert "BROKEN" in page(page_data(folder / "broken.zarr"))


def test_a_foreign_zarr_folder_is_a_row_too(tmp_path: Path) -> None:
    (tmp_path / "foreign.zarr").mkdir()
    (entry,) = list_entries([tmp_path])
    assert entry.problem is not None


def test_the_command_exits_three_where_a_store_is_broken(folder: Path) -> None:
    assert run_command("catalogs", "list", folder).returncode == 3
    assert run_command("catalogs", "list", folder / "a.zarr").returncode == 0
    assert "15 rules pass" in run_command("catalogs", "show", folder / "a.zarr").stdout


def test_a_file_is_no_folder_of_stores(tmp_path: Path) -> None:
    (tmp_path / "back.npz").write_bytes(b"")
    with pytest.raises(SourceError):
        find_items([tmp_path / "back.npz"])


def test_an_empty_folder_is_no_error(tmp_path: Path) -> None:
    assert table(list_entries([tmp_path])) == "no stores and no runs"

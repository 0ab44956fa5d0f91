"""A scan is found by its path or by its name in a catalog."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import NotFoundError, SourceError
from pipeline.scan.locate import locate
from pipeline.scan.store import write_scan
from tests.builders import legacy_members, make_scan, write_legacy_npz


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store, an NPZ and a catalog that names the store."""
    write_scan(make_scan(), tmp_path / "a.zarr")
    write_legacy_npz(tmp_path / "b.npz", legacy_members())
    (tmp_path / "items").mkdir()
    links = [{"rel": "root", "href": "catalog.json"}, {"rel": "item", "href": "items/x1.json", "title": "fly"}]
    (tmp_path / "catalog.json").write_text(json.dumps({"type": "Catalog", "links": links}))
    (tmp_path / "items" / "x1.json").write_text(json.dumps({"assets": {"data": {"href": "../a.zarr"}}}))
    return tmp_path


def test_paths_are_what_is_there(folder: Path) -> None:
    assert (locate(folder / "a.zarr").kind, locate(folder / "b.npz").kind) == ("store", "npz")
    with pytest.raises(SourceError):
        locate(folder)


def test_a_name_is_found_in_the_given_the_announced_and_the_near_catalog(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = (folder / "a.zarr").resolve()
    assert locate("fly", catalog=folder / "catalog.json").path.resolve() == store
    monkeypatch.setenv("PTYCHOZARR_CATALOG", str(folder / "catalog.json"))
    assert locate("fly").path.resolve() == store
    monkeypatch.delenv("PTYCHOZARR_CATALOG")
    monkeypatch.chdir(folder)
    assert locate("fly").path.resolve() == store


def test_an_unknown_name_suggests_near_ones(folder: Path) -> None:
    with pytest.raises(NotFoundError) as failure:
        locate("flyy", catalog=folder / "catalog.json")
    assert "fly" in str(failure.value.hint)


def test_a_catalog_that_is_missing_or_broken_is_told(folder: Path) -> None:
    with pytest.raises(NotFoundError, match="no such catalog"):
        locate("fly", catalog=folder / "none.json")
    (folder / "items" / "x1.json").write_text("{}")
    with pytest.raises(SourceError, match="'data'"):
        locate("fly", catalog=folder / "catalog.json")
    (folder / "catalog.json").write_text("[")
    with pytest.raises(SourceError):
        locate("fly", catalog=folder / "catalog.json")

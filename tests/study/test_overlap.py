"""Phase D: views of each dose as stores of their own, with how much their frames overlap."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.scan.record import open_record
from pipeline.scan.store import open_stored
from pipeline.study.views import OverlapPlan, drawn_view, overlap_metrics, spaced_view
from tests.builders import tree_bytes
from tests.study_roots import as_the_old_system, generated, study, viewed

KEYS = {
    "metrics_version", "gridsize", "s_img", "n_groups", "neighbor_count", "probe_diameter_px", "rng_seed_subsample",
    "metric_1_group_based_avg", "metric_2_image_based_avg", "metric_3_group_to_group_avg", "n_images_total",
    "n_images_subsampled", "n_unique_images", "n_groups_actual", "geometry_acceptance_bound",
    "effective_min_acceptance",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Roots of phases C (with files of the old layout) and D."""
    folder = tmp_path_factory.mktemp("overlap")
    generated(folder, "--legacy-npz")
    viewed(folder)
    return folder


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics_bundle.json").read_text())


def positions_of(store: Path) -> np.ndarray:
    part = open_stored(store)
    return np.stack([part.position_y.values, part.position_x.values], axis=1)


def test_two_flags_make_a_dense_and_a_sparse_view_of_each_dose(folder: Path) -> None:
    for dose in (1000, 10000):
        source = folder / "c" / f"dose_{dose}"
        for view, share in (("dense", 0.8), ("sparse", 0.2)):
            place = folder / "d" / f"dose_{dose}" / view
            for split in ("train", "test"):
                whole, part = open_stored(source / f"patched_{split}.zarr"), open_stored(place / f"{view}_{split}.zarr")
                kept = drawn_view(whole.sizes["frame"], s_img=share, seed=456)
                for name in ("diffraction", "label", "position_y", "frame_index"):
                    np.testing.assert_array_equal(part[name].values, whole[name].values[kept])
                found = metrics_of(place)[split]
                assert set(found) == KEYS
                assert (found["s_img"], found["n_groups"], found["neighbor_count"]) == (share, 512, 6)
                assert found["probe_diameter_px"] == pytest.approx(0.6 * 32)
                assert found["n_images_total"] == whole.sizes["frame"]
                assert found["n_images_subsampled"] == len(kept)
                plan = OverlapPlan(
                    gridsize=2, s_img=share, n_groups=512, neighbor_count=6, probe_diameter_px=19.2, seed=456
                )
                positions = positions_of(place / f"{view}_{split}.zarr")
                assert found == overlap_metrics(positions, plan, n_images_total=whole.sizes["frame"])
                assert json.loads((place / f"{split}_metrics.json").read_text()) == found


def test_what_a_view_was_made_of_stands_in_its_store_and_in_the_manifest(folder: Path) -> None:
    manifest = json.loads((folder / "d" / "overlap_manifest.json").read_text())
    assert len(manifest["views"]) == 4
    assert (manifest["skipped_views"], manifest["skipped_count"]) == ([], 0)
    for entry in manifest["views"]:
        for split, store in entry["stores"].items():
            record = open_record(folder / "d" / store["path"])
            source = open_record(folder / "c" / f"dose_{entry['dose']}" / f"patched_{split}.zarr")
            assert store["store_sha256"] == record.store_sha256
            assert record.attrs["provenance"]["taken_from"]["store_sha256"] == source.store_sha256
            assert entry["sources"][split]["store_sha256"] == source.store_sha256
        for file in entry["metrics"].values():
            data = (folder / "d" / file["path"]).read_bytes()
            assert (hashlib.sha256(data).hexdigest(), len(data)) == (file["sha256"], file["bytes"])


def test_the_same_again_is_unchanged_to_the_last_byte(folder: Path) -> None:
    before = tree_bytes(folder / "d")
    again = study("overlap", "--phase-c-root", folder / "c", "--output-root", folder / "d")
    assert again.returncode == 0
    assert again.stdout.count("unchanged") == 4
    assert tree_bytes(folder / "d") == before


@pytest.mark.parametrize("spelling", [("--s-img", "--n-groups"), ("--simg", "--ngroups")])
def test_the_folder_of_one_dose_takes_the_flags_of_later_versions(
    folder: Path, tmp_path: Path, spelling: tuple[str, str]
) -> None:
    share, groups = spelling
    done = study(
        "overlap", "--phase-c-root", folder / "c" / "dose_1000", "--output-root", tmp_path / "d", "--artifact-root",
        tmp_path / "a", "--gridsize", "1", share, "0.5", groups, "30", "--neighbor-count", "3", "--probe-diameter-px",
        "20", "--rng-seed-subsample", "42",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "d").iterdir()}
    assert names >= {"train.zarr", "test.zarr", "train_metrics.json", "test_metrics.json", "metrics_bundle.json"}
    found = metrics_of(tmp_path / "d")
    assert metrics_of(tmp_path / "a") == found
    assert json.loads((tmp_path / "d" / "overlap_manifest.json").read_text())["views"][0]["dose"] == 1000
    assert set(found["train"]) == KEYS - {"metric_1_group_based_avg"}
    assert (found["train"]["neighbor_count"], found["train"]["rng_seed_subsample"]) == (3, 42)
    whole = open_stored(folder / "c" / "dose_1000" / "patched_train.zarr").sizes["frame"]
    assert found["train"]["n_images_subsampled"] == round(0.5 * whole)


def test_the_rule_of_spacing_keeps_frames_that_lie_apart_and_skips_views_too_small_for_a_group(
    folder: Path, tmp_path: Path
) -> None:
    done = study("overlap", "--phase-c-root", folder / "c", "--output-root", tmp_path / "wide", "--rule", "spacing")
    assert done.returncode == 0
    manifest = json.loads((tmp_path / "wide" / "overlap_manifest.json").read_text())
    assert {(skip["dose"], skip["view"]) for skip in manifest["skipped_views"]} >= {(1000, "sparse"), (10000, "sparse")}
    assert "a group of gridsize 2 has 4" in manifest["skipped_views"][0]["reason"]
    assert "skipped" in done.stdout
    shutil.copytree(folder / "d", tmp_path / "d")
    stale = study("overlap", "--phase-c-root", folder / "c", "--output-root", tmp_path / "d", "--rule", "spacing")
    assert stale.returncode == 7  # views that would be skipped are still there, and would be trained
    left = json.loads((tmp_path / "d" / "overlap_manifest.json").read_text())
    assert {entry["measure"]["rule"] for entry in left["views"]} == {"fraction"}
    assert len(left["failed_views"]) == len(left["views"]) == 4
    near = tmp_path / "near.toml"
    near.write_text("patch_px = 20.0\n[views.dense]\noverlap = 0.7\ns_img = 0.8\n")
    done = study("overlap", "--phase-c-root", folder / "c", "--output-root", tmp_path / "near", "--rule", "spacing",
                 "--design", near)  # fmt: skip
    assert done.returncode == 0, done.stderr
    positions = positions_of(folder / "c" / "dose_1000" / "patched_train.zarr")
    kept = positions_of(tmp_path / "near" / "dose_1000" / "dense" / "dense_train.zarr")
    np.testing.assert_array_equal(kept, positions[spaced_view(positions, spacing_px=6.0)])
    assert metrics_of(tmp_path / "near" / "dose_1000" / "dense")["train"]["s_img"] is None


@pytest.mark.parametrize("key", ["diffraction", "diff3d"])
def test_files_of_the_old_system_give_the_frames_of_our_stores(folder: Path, tmp_path: Path, key: str) -> None:
    old = as_the_old_system(folder / "c", tmp_path / "old", key=key)
    done = study("overlap", "--phase-c-root", old, "--output-root", tmp_path / "d")
    assert done.returncode == 0, done.stderr
    theirs = open_stored(tmp_path / "d" / "dose_1000" / "dense" / "dense_train.zarr")
    ours = open_stored(folder / "d" / "dose_1000" / "dense" / "dense_train.zarr")
    for name in ("diffraction", "position_y", "position_x"):
        np.testing.assert_array_equal(theirs[name].values, ours[name].values)
    assert not list((tmp_path / "d").rglob("*.partial"))
    assert metrics_of(tmp_path / "d" / "dose_1000" / "dense") == metrics_of(folder / "d" / "dose_1000" / "dense")


def test_two_processes_of_a_cluster_leave_the_bytes_of_one(folder: Path, tmp_path: Path) -> None:
    done = study("overlap", "--phase-c-root", folder / "c", "--output-root", tmp_path / "d", "--workers", "2")
    assert done.returncode == 0, done.stderr
    theirs, ours = tree_bytes(tmp_path / "d"), tree_bytes(folder / "d")
    assert theirs == ours


def test_roots_and_flags_that_cannot_be_are_refused_before_any_work(folder: Path, tmp_path: Path) -> None:
    def code(*arguments: str | Path) -> int:
        return study("overlap", "--output-root", tmp_path / "d", "--phase-c-root", *arguments).returncode

    assert code(tmp_path / "none") == 5
    (tmp_path / "empty").mkdir()
    assert code(tmp_path / "empty") == 5
    (tmp_path / "half" / "dose_7").mkdir(parents=True)
    assert code(tmp_path / "half") == 5
    assert code(folder / "c" / "dose_1000", "--s-img", "1.5") == 2
    assert code(folder / "c", "--gridsize", "3") == 2
    assert code(folder / "c" / "dose_1000", "--s-img", "0.5", "--rule", "spacing") == 2
    assert code(folder / "c", "--probe-diameter-px", "0") == 2
    assert not (tmp_path / "d").exists()
    two = tmp_path / "two"
    two.mkdir()
    for name in ("a_train.npz", "b_train.npz"):
        (two / name).write_bytes(b"")
    assert code(two, "--s-img", "0.5") == 4

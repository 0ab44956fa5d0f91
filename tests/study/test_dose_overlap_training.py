"""Phase E under the names that users of the old system run: bundles, filters, manifests, lines on stdout."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest

from pipeline.learning.bundle import load_bundle
from pipeline.scan.record import open_record
from tests.builders import tree_bytes
from tests.study_roots import as_the_old_system, generated, study, viewed, write_design


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Roots of phases C and D of two doses; nothing is trained in here."""
    folder = tmp_path_factory.mktemp("training")
    generated(folder, "--legacy-npz")
    viewed(folder)
    return folder


def run(roots: Path, artifacts: Path, *more: str | Path, c: Path | None = None, d: Path | None = None):
    return study(
        "train", "--phase-c-root", c or roots / "c", "--phase-d-root", d or roots / "d", "--artifact-root", artifacts,
        "--accelerator", "cpu", "--deterministic", "--num-workers", "0", *more,
    )  # fmt: skip


def manifest_of(artifacts: Path) -> dict:
    return json.loads((artifacts / "training_manifest.json").read_text())


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_execute_training_job_persists_bundle(roots: Path, tmp_path: Path) -> None:
    """The smallest real training leaves a bundle with both models, whose digest the manifest has."""
    done = run(roots, tmp_path / "e", "--dose", "1000", "--view", "dense", "--gridsize", "2")
    assert done.returncode == 0, done.stderr
    (job,) = manifest_of(tmp_path / "e")["jobs"]
    result = job["result"]
    assert result["status"] == "success"
    path = tmp_path / "e" / "dose_1000" / "dense" / "gs2" / result["bundle_path"]
    assert path.suffix == ".zip"
    assert re.fullmatch(r"[0-9a-f]{64}", result["bundle_sha256"])
    assert result["bundle_sha256"] == sha256_of(path)
    assert result["bundle_size_bytes"] == path.stat().st_size
    bundle = load_bundle(path)
    assert callable(bundle.autoencoder)
    assert callable(bundle.diffraction_to_obj)
    assert bundle.training.stream.gridsize == 2
    store = open_record(roots / "d" / "dose_1000" / "dense" / "dense_train.zarr")
    assert bundle.lineage["store_sha256"] == result["store_sha256"] == store.store_sha256
    assert (path.parent / "train.log").read_text().rstrip().endswith("done")


def test_training_cli_filters_jobs(roots: Path, tmp_path: Path) -> None:
    """Nine jobs of three doses; three of a dose or a view, six of gridsize 2, one of all three."""
    three = write_design(tmp_path / "three.toml", doses=[1000, 10000, 100000])
    root = tmp_path / "c"
    for dose in (1000, 10000, 100000):
        (root / f"dose_{dose}").mkdir(parents=True)
        for view in ("patched", "dense/dense", "sparse/sparse"):
            for split in ("train", "test"):
                file = root / f"dose_{dose}" / f"{view}_{split}.npz"
                file.parent.mkdir(exist_ok=True)
                file.write_bytes((roots / "c" / "dose_1000" / f"patched_{split}.npz").read_bytes())
    for filters, n_jobs in {
        (): 9, ("--dose", "1000"): 3, ("--view", "dense"): 3, ("--gridsize", "2"): 6, ("--gridsize", "1"): 3,
        ("--dose", "1e3", "--view", "dense", "--gridsize", "2"): 1, ("--view", "baseline", "--gridsize", "2"): 0,
        ("--dose", "7"): 0,
    }.items():  # fmt: skip
        artifacts = tmp_path / "e" / "-".join(filters)
        done = run(roots, artifacts, *filters, "--dry-run", "--design", three, c=root, d=root)
        assert done.returncode == 0, done.stderr
        manifest = manifest_of(artifacts)
        assert manifest["dry_run"] is True
        assert len(manifest["jobs"]) == n_jobs, filters
        assert {job["backend"] for job in manifest["jobs"]} <= {"pytorch"}
        for job in manifest["jobs"]:
            assert job["result"] == {key: job[key] for key in job["result"]}
            assert {"dose", "view", "gridsize", "train_data_path", "test_data_path", "log_path"} == set(job["result"])
        assert [path.name for path in artifacts.iterdir()] == ["training_manifest.json"]
    assert ("no job matches" in done.stdout) is True


def test_training_cli_manifest_and_bridging(roots: Path, tmp_path: Path) -> None:
    """Two jobs and a view that is not there: recorded, summed up beside, and no failure."""
    views = tmp_path / "d" / "dose_1000"
    views.mkdir(parents=True)
    (views / "dense").symlink_to(roots / "d" / "dose_1000" / "dense")
    done = run(roots, tmp_path / "e", "--dose", "1000", d=tmp_path / "d")
    assert done.returncode == 0, done.stderr
    manifest = manifest_of(tmp_path / "e")
    assert [(job["view"], job["gridsize"]) for job in manifest["jobs"]] == [("baseline", 1), ("dense", 2)]
    (skip,) = manifest["skipped_views"]
    assert (skip["dose"], skip["view"]) == (1000.0, "sparse")
    assert str(tmp_path / "d" / "dose_1000") in skip["reason"]
    assert manifest["skip_summary_path"] == "skip_summary.json"
    summary = json.loads((tmp_path / "e" / manifest["skip_summary_path"]).read_text())
    for key in ("timestamp", "skipped_views", "skipped_count"):
        assert summary[key] == manifest[key]
    assert summary["skipped_count"] == 1
    assert manifest["filters"] == {"dose": 1000.0, "view": None, "gridsize": None}


def test_training_cli_invokes_real_runner(roots: Path, tmp_path: Path) -> None:
    """The baseline trains on the frames of its dose, on single ones, and leaves a run that stands alone."""
    done = run(roots, tmp_path / "e", "--dose", "1000", "--view", "baseline")
    assert done.returncode == 0, done.stderr
    (job,) = manifest_of(tmp_path / "e")["jobs"]
    assert job["train_data_path"].endswith("patched_train.zarr")
    assert job["dose"] == 1000
    assert job["gridsize"] == 1
    assert Path(job["log_path"]).is_relative_to(tmp_path / "e")
    folder = Path(job["artifact_dir"])
    assert {"run.json", "run.toml", "report.json", "report.html", "metrics.jsonl", "wts.h5.zip", "train.log"} <= {
        path.name for path in folder.iterdir()
    }
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert sum(step["phase"] == "fit" for step in steps) == 3
    assert job["result"]["steps_completed"] == 3
    assert job["result"]["final_loss"] > 0


def test_training_cli_records_bundle_path(roots: Path, tmp_path: Path) -> None:
    """Bundle, digest and size on stdout are those of the manifest and of the file, also where one job came later."""
    printed = ""
    for view, gridsize in (("dense", "2"), ("baseline", "1")):
        done = run(roots, tmp_path / "e", "--dose", "1000", "--view", view, "--gridsize", gridsize)
        assert done.returncode == 0, done.stderr
        printed += done.stdout
    jobs = manifest_of(tmp_path / "e")["jobs"]
    assert len(jobs) == 2
    for job in jobs:
        result, name = job["result"], f"{job['view']}/dose=1e+03"
        path = tmp_path / "e" / "dose_1000" / job["view"] / f"gs{job['gridsize']}" / result["bundle_path"]
        assert result["bundle_path"] == "wts.h5.zip"
        assert f"    → Bundle [{name}]: wts.h5.zip\n" in printed
        assert f"    → SHA256 [{name}]: {sha256_of(path)}\n" in printed
        assert f"    → Size [{name}]: {path.stat().st_size} bytes\n" in printed
        assert (result["bundle_sha256"], result["bundle_size_bytes"]) == (sha256_of(path), path.stat().st_size)


@pytest.mark.parametrize(("key", "exact"), [("diffraction", True), ("diff3d", False)])
def test_roots_of_the_old_system_train_with_either_key(roots: Path, tmp_path: Path, key: str, exact: bool) -> None:
    """Files that hold `diffraction` alone broke the old system; where counts are lost, the dose tells the photons."""
    old = as_the_old_system(roots / "c", tmp_path / "old", key=key, exact=exact)
    done = run(roots, tmp_path / "e", "--dose", "1000", "--view", "baseline", "--design", roots / "design.toml", c=old)
    assert done.returncode == 0, done.stderr
    (job,) = manifest_of(tmp_path / "e")["jobs"]
    assert job["train_data_path"].endswith("patched_train.npz")
    assert job["result"]["training_results"]["loss"] == "poisson"
    bundle = load_bundle(Path(job["artifact_dir"]) / "wts.h5.zip")
    assert bundle.training.photons_per_frame == (None if exact else 1000.0)
    data = open_record(Path(job["artifact_dir"]) / "data.zarr")
    assert data.arrays["diffraction"].attrs["quantity"] == ("counts" if exact else "amplitude")
    assert job["result"]["store_sha256"] == data.store_sha256


def test_jobs_that_are_done_are_left_as_they_are_and_give_the_same_manifest(roots: Path, tmp_path: Path) -> None:
    first = run(roots, tmp_path / "e", "--dose", "1000", "--view", "dense")
    before, then = tree_bytes(tmp_path / "e" / "dose_1000"), manifest_of(tmp_path / "e")
    again = run(roots, tmp_path / "e", "--dose", "1000", "--view", "dense")
    assert "trained" in first.stdout
    assert "unchanged" in again.stdout
    assert tree_bytes(tmp_path / "e" / "dose_1000") == before
    now = manifest_of(tmp_path / "e")
    assert now["jobs"] == then["jobs"]
    planned = run(roots, tmp_path / "e", "--dry-run")
    assert planned.returncode == 0
    assert manifest_of(tmp_path / "e") == now  # a dry run does not take the place of bundles
    assert len(json.loads((tmp_path / "e" / "training_manifest.dry_run.json").read_text())["jobs"]) == 6


def test_other_settings_or_frames_under_the_same_name_are_refused_before_any_work(roots: Path, tmp_path: Path) -> None:
    assert run(roots, tmp_path / "e", "--dose", "1000", "--view", "baseline").returncode == 0
    before = tree_bytes(tmp_path / "e")
    other = write_design(tmp_path / "other.toml", seeds={"grouping": 5})
    done = run(roots, tmp_path / "e", "--view", "baseline", "--design", other)
    assert done.returncode == 7
    assert "other settings" in done.stderr
    swapped = tmp_path / "swapped"
    swapped.mkdir()
    (swapped / "dose_1000").symlink_to(roots / "c" / "dose_10000")
    done = run(
        roots, tmp_path / "e", "--dose", "1000", "--view", "baseline", "--design", roots / "design.toml", c=swapped
    )
    assert done.returncode == 7
    assert "other frames" in done.stderr
    assert tree_bytes(tmp_path / "e") == before


def test_a_damaged_half_fails_its_job_alone(roots: Path, tmp_path: Path) -> None:
    broken = tmp_path / "c"
    shutil.copytree(roots / "c", broken)
    chunk = broken / "dose_10000" / "patched_train.zarr" / "diffraction" / "c.0.0.0"
    chunk.write_bytes(chunk.read_bytes()[::-1])
    done = run(roots, tmp_path / "e", "--view", "baseline", c=broken)
    assert done.returncode == 3
    good, bad = manifest_of(tmp_path / "e")["jobs"]
    assert (good["result"]["status"], bad["result"]["status"]) == ("success", "failed")
    assert "diffraction" in bad["result"]["error"]
    assert bad["result"]["bundle_path"] is None
    alone = run(roots, tmp_path / "f", "--view", "baseline", "--dose", "10000", c=broken)
    assert alone.returncode == 1
    assert "failed" in alone.stdout


def test_what_cannot_be_is_refused_before_any_work(roots: Path, tmp_path: Path) -> None:
    artifacts = tmp_path / "e"
    for more, code, said in (
        (("--view", "dens"), 2, "baseline, dense, sparse"),
        (("--model", "canvas"), 2, "dose_1000/dense/gs2, dose_1000/sparse/gs2"),
        (("--backend", "tensorflow"), 2, "pytorch"),
        (("--workers", "0"), 2, "at least 1"),
        (("--dose", "nan"), 2, "--dose"),
        (("--dose", "-1"), 2, "--dose"),
        (("--scheduler", "tcp://127.0.0.1:1", "--num-workers", "1"), 2, "--num-workers 0"),
    ):
        done = run(roots, artifacts, *more)
        assert done.returncode == code, (more, done.stderr)
        assert said in done.stderr
    few = write_design(tmp_path / "few.toml", neighbor_count=3)
    done = run(roots, artifacts, "--design", few)
    assert done.returncode == 2
    assert "OVERSAMPLING-001" in done.stderr
    assert run(roots, artifacts, c=tmp_path / "none").returncode == 5
    assert run(roots, artifacts, c=tmp_path).returncode == 5
    assert run(roots, artifacts, d=few).returncode == 5
    assert run(roots, few).returncode == 7
    assert not artifacts.exists()
    assert run(roots, artifacts, "--dose", "1000.4", "--dry-run").stdout.startswith("no job matches")
    shutil.rmtree(artifacts)
    missing = run(roots, artifacts, "--view", "dense", d=tmp_path / "none")
    assert missing.returncode == 0
    assert manifest_of(artifacts)["skipped_count"] == 2


def test_the_model_of_whole_objects_trains_the_baseline(roots: Path, tmp_path: Path) -> None:
    done = run(roots, tmp_path / "e", "--dose", "1000", "--view", "baseline", "--model", "canvas", "--design",
               write_design(tmp_path / "d.toml", training={"settings": {
                   "fit.steps": 2, "network.width": 4, "solver.iterations": 2, "solver.start_iterations": 1,
                   "prior.name": "quadratic", "prior.weight": 0.03, "refine.what": "none", "stream.batch_size": 30,
               }}))  # fmt: skip
    assert done.returncode == 0, done.stderr
    (job,) = manifest_of(tmp_path / "e")["jobs"]
    assert job["model"] == "canvas"


def test_a_fault_of_the_machine_fails_its_job_alone(roots: Path, tmp_path: Path) -> None:
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "dose_1000").write_text("in the way")
    done = run(roots, tmp_path / "e", "--view", "baseline")
    assert done.returncode == 3
    assert [job["result"]["status"] for job in manifest_of(tmp_path / "e")["jobs"]] == ["failed", "success"]


def test_a_job_sweeps_up_after_itself_alone(tmp_path: Path) -> None:
    from pipeline.scan.staging import sweep

    for name in (".gs2.1234.partial", ".gs3.1234.partial"):
        (tmp_path / name).mkdir()
    sweep(tmp_path, "gs3")
    assert [path.name for path in tmp_path.iterdir()] == [".gs2.1234.partial"]


@pytest.mark.long
def test_two_processes_of_a_cluster_leave_the_bundles_of_one(roots: Path, tmp_path: Path) -> None:
    one = run(roots, tmp_path / "one", "--view", "baseline")
    two = run(roots, tmp_path / "two", "--view", "baseline", "--workers", "2", "--num-workers", "1")
    assert (one.returncode, two.returncode) == (0, 0), two.stderr
    digests = [
        [job["result"]["bundle_sha256"] for job in manifest_of(tmp_path / name)["jobs"]] for name in ("one", "two")
    ]
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == 2

"""The whole study: verified to the last byte, its state told from disk, the same after kills and with a cluster."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from pipeline import verify  # noqa: E402
from pipeline.scan.sealed import read_document, sealed, write_document  # noqa: E402
from tests.builders import tree_bytes  # noqa: E402
from tests.guards import REPOSITORY, run_main  # noqa: E402
from tests.study_roots import generated, hashes_in, study, train, viewed, write_base, write_design  # noqa: E402


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of one dose with a baseline and a dense view, its stages in c, d and e."""
    folder = tmp_path_factory.mktemp("whole")
    one = {"doses": [1000], "views": {"dense": {"overlap": 0.7, "s_img": 0.8}}}
    generated(folder, "--legacy-npz", **one)
    viewed(folder, **one)
    assert train(folder).returncode == 0
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    for name in "cde":
        shutil.copytree(whole / name, tmp_path / name)
    return tmp_path


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1
    path.write_bytes(data)


def test_a_whole_study_is_verified_by_either_command(whole: Path) -> None:
    for done in (study("verify", whole), run_main(verify.main, whole)):
        assert done.returncode == 0, done.stdout
        assert "all as written" in done.stdout
    for name, n_manifests in (("c", 1), ("d", 1), ("e", 1)):
        told = json.loads(study("verify", whole / name, "--json").stdout)["data"]
        assert len(told["manifests"]) == n_manifests
        assert told["damages"] == []


@pytest.mark.parametrize(
    "place",
    [
        "c/run_manifest.json", "c/design.json", "c/dose_1000/patched_train.zarr/diffraction/c.0.0.0",
        "c/dose_1000/patched_test.zarr/zarr.json", "c/dose_1000/patched_test.npz", "d/overlap_manifest.json",
        "d/dose_1000/dense/dense_test.zarr/manifest.json", "d/dose_1000/dense/metrics_bundle.json",
        "e/training_manifest.json", "e/skip_summary.json", "e/dose_1000/dense/gs2/wts.h5.zip",
        "e/dose_1000/baseline/gs1/wts.h5.zip",
    ],
)  # fmt: skip
def test_one_changed_byte_anywhere_is_found_and_named(copy: Path, place: str) -> None:
    rng = random.Random(place)
    original = (copy / place).read_bytes()
    for at in (0, len(original) - 1, *(rng.randrange(len(original)) for _ in range(3))):
        flip(copy / place, at)
        done = study("verify", copy)
        assert done.returncode == 6, (at, done.stdout)
        named = next(part for part in Path(place).parts if "." in part)  # a store, not what lies inside
        assert named in done.stdout, (at, done.stdout)
        (copy / place).write_bytes(original)
    assert study("verify", copy).returncode == 0


@pytest.mark.parametrize(
    "place", ["c/dose_1000/patched_test.npz", "d/dose_1000/dense/dense_test.zarr", "e/dose_1000/dense/gs2",
              "e/dose_1000/dense/gs2/wts.h5.zip", "e/skip_summary.json", "c/design.json"],
)  # fmt: skip
def test_what_is_missing_is_found_and_named(copy: Path, place: str) -> None:
    path = copy / place
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    done = study("verify", copy)
    assert done.returncode == 6, done.stdout
    assert path.name in done.stdout


def test_a_bundle_put_in_place_of_another_is_found(copy: Path) -> None:
    jobs = copy / "e" / "dose_1000"
    shutil.copy(jobs / "baseline" / "gs1" / "wts.h5.zip", jobs / "dense" / "gs2" / "wts.h5.zip")
    done = study("verify", copy)
    assert done.returncode == 6
    assert "dense/gs2/wts.h5.zip" in done.stdout


def test_a_manifest_written_anew_with_another_digest_is_found_by_what_it_tells_of(copy: Path) -> None:
    path = copy / "c" / "run_manifest.json"
    document = read_document(path)
    document["dose_1000"]["train_store_sha256"] = "0" * 64
    write_document(path, document)
    done = study("verify", copy)
    assert done.returncode == 6
    assert "run_manifest.json: dose_1000" in done.stdout


def test_a_folder_without_a_study_is_not_found(tmp_path: Path) -> None:
    assert study("verify", tmp_path).returncode == 5
    assert study("status", tmp_path).returncode == 5
    assert run_main(verify.main, tmp_path).returncode == 4
    assert study("verify", tmp_path / "none").returncode == 5


def test_damage_is_damage_also_after_the_stage_is_run_again(copy: Path) -> None:
    """A job or view that fails because of it takes no claim back: verify goes on to name it."""
    promised = read_document(copy / "e" / "training_manifest.json")["jobs"][1]["result"]["bundle_sha256"]
    flip(copy / "e" / "dose_1000" / "dense" / "gs2" / "wts.h5.zip", 5000)
    chunk = copy / "d" / "dose_1000" / "dense" / "dense_test.zarr" / "diffraction" / "c.0.0.0"
    flip(chunk, 50)
    again = train(copy)
    assert again.returncode == 3
    assert "dose_1000/dense/gs2: failed" in again.stdout
    (result,) = [
        job["result"] for job in read_document(copy / "e" / "training_manifest.json")["jobs"] if job["view"] == "dense"
    ]
    assert result["last_bundle"]["bundle_sha256"] == promised
    assert study("overlap", "--phase-c-root", copy / "c", "--output-root", copy / "d").returncode == 6
    for root, named in (("e", "wts.h5.zip"), ("d", "dense_test.zarr")):
        done = study("verify", copy / root)
        assert done.returncode == 6
        assert named in done.stdout
        assert json.loads(study("status", copy / root, "--json").stdout)["data"]["counts"]["failed"] == 1


def test_a_stage_adds_nothing_to_a_manifest_that_was_changed(copy: Path) -> None:
    base, design = write_base(copy / "b.npz"), copy / "c" / "design.json"
    for name, run_again in {
        "c/run_manifest.json": lambda: study(
            "generate", "--base-npz", base, "--output-root", copy / "c", "--design", design
        ),
        "d/overlap_manifest.json": lambda: study("overlap", "--phase-c-root", copy / "c", "--output-root", copy / "d"),
        "e/training_manifest.json": lambda: train(copy),
    }.items():
        path = copy / name
        before = path.read_bytes()
        path.write_bytes(before.replace(b"1000", b"1001", 1))
        done = run_again()
        assert done.returncode == 6, (name, done.stderr)
        assert path.name in done.stderr
        path.write_bytes(before)


def test_a_failed_job_and_skips_stay_in_the_manifest_when_others_are_trained(copy: Path) -> None:
    shutil.rmtree(copy / "e")
    (copy / "c" / "dose_1000" / "patched_train.zarr" / "zarr.json").write_text("{}")
    shutil.move(copy / "d" / "dose_1000" / "dense", copy / "d" / "dose_1000" / "aside")
    assert train(copy).returncode == 1
    shutil.move(copy / "d" / "dose_1000" / "aside", copy / "d" / "dose_1000" / "dense")
    manifest = read_document(copy / "e" / "training_manifest.json")
    assert [(job["view"], job["result"]["status"]) for job in manifest["jobs"]] == [("baseline", "failed")]
    assert [skip["view"] for skip in manifest["skipped_views"]] == ["dense"]
    assert train(copy, "--view", "dense").returncode == 0
    manifest = read_document(copy / "e" / "training_manifest.json")
    assert [(job["view"], job["result"]["status"]) for job in manifest["jobs"]] == [
        ("baseline", "failed"), ("dense", "success"),
    ]  # fmt: skip
    assert manifest["skipped_views"] == []
    assert study("verify", copy / "e").returncode == 3


def test_a_dose_that_the_manifest_does_not_tell_of_is_a_finding(copy: Path) -> None:
    write_document(copy / "c" / "run_manifest.json", {})
    done = study("verify", copy / "c")
    assert done.returncode == 3
    assert "dose_1000" in done.stdout


def test_frames_that_a_view_was_made_of_are_compared_where_they_lie(copy: Path) -> None:
    path = copy / "d" / "overlap_manifest.json"
    document = read_document(path)
    document["views"][0]["sources"]["test"]["store_sha256"] = "0" * 64
    write_document(path, sealed(document))
    done = study("verify", copy / "d")
    assert done.returncode == 6
    assert "patched_test.zarr" in done.stdout
    document["phase_c_root"] = "gone"
    write_document(path, sealed(document))
    assert study("verify", copy / "d").returncode == 0


def test_several_damages_are_all_named(copy: Path) -> None:
    (copy / "e" / "dose_1000" / "dense" / "gs2" / "wts.h5.zip").write_bytes(b"x")
    flip(copy / "e" / "dose_1000" / "baseline" / "gs1" / "wts.h5.zip", 3000)
    done = study("verify", copy / "e")
    assert "dense/gs2" in done.stdout
    assert "baseline/gs1" in done.stdout
    assert "training_manifest.json: not as" not in done.stdout


@pytest.mark.parametrize("content", ["{}", '{"jobs": null}', "[1]", '{"jobs": [{}], "skipped_views": []}'])
def test_a_document_of_another_shape_is_damage_and_no_crash(copy: Path, content: str) -> None:
    for root, name in (("d", "overlap_manifest.json"), ("e", "training_manifest.json"), ("c", "run_manifest.json")):
        (copy / root / name).write_text(content)
        if (root, content) != ("c", "{}"):
            assert study("verify", copy / root).returncode == 6
        assert study("status", copy / root).returncode == (0 if root == "c" and content != "[1]" else 6)


def test_status_tells_what_is_done_begun_and_left_from_disk_alone(whole: Path, copy: Path) -> None:
    told = json.loads(study("status", whole, "--json").stdout)["data"]
    assert told["counts"] == {"done": 4, "begun": 0, "failed": 0, "skipped": 0, "left": 0}
    assert [step["stage"] for step in told["steps"]] == ["generate", "overlap", "train", "train"]
    shutil.rmtree(copy / "c" / "dose_1000" / "patched_test.zarr")
    shutil.rmtree(copy / "e" / "dose_1000" / "dense")
    views = read_document(copy / "d" / "overlap_manifest.json")
    write_document(copy / "d" / "overlap_manifest.json", {**views, "views": []})  # as after a kill
    run = copy / "e" / "dose_1000" / "baseline" / "gs1"
    (run / "wts.h5.zip").unlink()
    (run / "checkpoints").mkdir()
    done = study("status", copy)
    assert "generate dose_1000" in done.stdout
    states = {line.split()[1]: line.split()[2] for line in done.stdout.splitlines()[:-1]}
    assert states["dose_1000"] == "begun"
    assert states["dose_1000/baseline/gs1"] == "begun"
    assert states["dose_1000/dense/gs2"] == "left"
    assert states["dose_1000/dense"] == "left"


STAGES = {
    "generate": ("--base-npz", "base.npz", "--output-root", "c", "--design", "design.toml", "--legacy-npz"),
    "overlap": ("--phase-c-root", "c", "--output-root", "d"),
    "train": ("--phase-c-root", "c", "--phase-d-root", "d", "--artifact-root", "e"),
}
"""The three stages, run in a folder as a user would."""


def start(stage: str, folder: Path, *more: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.study", stage, *STAGES[stage], *more], cwd=folder, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip


def all_hashes(folder: Path) -> list:
    names = ("c/run_manifest.json", "d/overlap_manifest.json", "e/training_manifest.json")
    return [hashes_in(read_document(folder / name)) for name in names]


def without_times(folder: Path) -> dict[str, bytes]:
    """Every store, file and bundle of a study; neither logs nor reports nor what tells the time."""
    kept = {name: data for name, data in tree_bytes(folder / "c").items() if name != ".lock"}
    kept |= {f"d/{name}": data for name, data in tree_bytes(folder / "d").items() if name != ".lock"}
    bundles = {name: data for name, data in tree_bytes(folder / "e").items() if name.endswith("wts.h5.zip")}
    return kept | bundles


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    prepare(folder)
    for stage in STAGES:
        assert start(stage, folder).wait() == 0
    return folder


def prepare(folder: Path) -> None:
    write_base(folder / "base.npz")
    write_design(folder / "design.toml", doses=[1000], views={"dense": {"overlap": 0.7, "s_img": 0.8}})


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_study_killed_ten_times_leaves_the_bytes_of_one_that_was_not(undisturbed: Path, tmp_path: Path) -> None:
    prepare(tmp_path)
    rng, kills = random.Random(7), 0
    lengths = {}
    for stage in STAGES:
        scratch = tmp_path / "timing"
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(undisturbed, scratch)
        shutil.rmtree(scratch / {"generate": "c", "overlap": "d", "train": "e"}[stage])
        began = time.monotonic()
        assert start(stage, scratch).wait() == 0
        lengths[stage] = time.monotonic() - began
    shutil.rmtree(tmp_path / "timing")
    for stage, n_kills in (("generate", 3), ("overlap", 2), ("train", 5)):
        for _ in range(n_kills):
            running = start(stage, tmp_path)
            time.sleep(rng.uniform(0.3, 1.0) * lengths[stage])
            os.killpg(running.pid, signal.SIGKILL)
            kills += running.wait() == -signal.SIGKILL
        assert start(stage, tmp_path).wait() == 0
    assert kills >= 5
    assert all_hashes(tmp_path) == all_hashes(undisturbed)
    assert without_times(tmp_path) == without_times(undisturbed)
    assert not list(tmp_path.rglob("*.partial"))
    assert study("verify", tmp_path).returncode == 0


@pytest.mark.long
def test_a_study_that_is_interrupted_says_how_to_go_on(undisturbed: Path, tmp_path: Path) -> None:
    prepare(tmp_path)
    for name in "cd":
        shutil.copytree(undisturbed / name, tmp_path / name)
    running = subprocess.Popen(
        [sys.executable, "-m", "pipeline.study", "train", *STAGES["train"]], cwd=tmp_path, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    while not (tmp_path / "e" / "dose_1000" / "baseline" / "gs1" / "train.log").exists():
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, told = running.communicate()
    assert running.returncode == 130
    assert "python -m pipeline.study train --phase-c-root c --phase-d-root d --artifact-root e" in told
    assert "Traceback" not in told
    assert start("train", tmp_path).wait() == 0
    assert all_hashes(tmp_path)[2] == all_hashes(undisturbed)[2]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_study_with_two_processes_leaves_the_bytes_of_one(undisturbed: Path, tmp_path: Path) -> None:
    prepare(tmp_path)
    for stage in STAGES:
        assert start(stage, tmp_path, "--workers", "2").wait() == 0
    assert all_hashes(tmp_path) == all_hashes(undisturbed)
    assert without_times(tmp_path) == without_times(undisturbed)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_cluster_that_runs_already_and_elsewhere_leaves_the_same_bytes(undisturbed: Path, tmp_path: Path) -> None:
    prepare(tmp_path)
    there = tmp_path / "there"
    there.mkdir()
    script = (
        "import sys\nfrom distributed import LocalCluster\nif __name__ == '__main__':\n"
        " with LocalCluster(n_workers=1, threads_per_worker=1, host='127.0.0.1', dashboard_address=':0') as cluster:\n"
        "  print(cluster.scheduler_address, flush=True)\n  sys.stdin.read()\n"
    )
    (there / "cluster.py").write_text(script)
    with subprocess.Popen(
        [sys.executable, "cluster.py"], cwd=there, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    ) as cluster:  # fmt: skip
        address = cluster.stdout.readline().strip()
        for stage in STAGES:
            assert start(stage, tmp_path, "--scheduler", address).wait() == 0
        cluster.stdin.close()
    shutil.rmtree(there)
    assert all_hashes(tmp_path) == all_hashes(undisturbed)
    assert without_times(tmp_path) == without_times(undisturbed)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_job_whose_process_dies_is_done_again_with_the_same_bytes(undisturbed: Path, tmp_path: Path) -> None:
    prepare(tmp_path)
    for name in "cd":
        shutil.copytree(undisturbed / name, tmp_path / name)
    running = start("train", tmp_path, "--workers", "1")
    place = tmp_path / "e" / "dose_1000" / "baseline" / "gs1"
    while not (place / "train.log").exists():
        assert running.poll() is None
        time.sleep(0.05)
    victims = [pid for pid in below(running.pid) if b"distributed" in command_of(pid) or b"spawn" in command_of(pid)]
    assert victims
    os.kill(max(victims), signal.SIGKILL)
    assert running.wait() == 0
    assert (place / "train.log").read_text().count("patch on") == 2
    assert all_hashes(tmp_path)[2] == all_hashes(undisturbed)[2]


def below(pid: int) -> list[int]:
    """Every process that a process started, and theirs."""
    children = " ".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")).split()
    return [found for child in map(int, children) for found in (child, *below(child))]


def command_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()

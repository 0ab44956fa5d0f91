"""One order, everywhere: the same bytes for any workers, after any resume, each chunk decoded once."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from torch.utils.data import DataLoader  # noqa: E402  # behind the check that torch is there

from pipeline.config import StreamConfig  # noqa: E402
from pipeline.errors import ConfigError, IntegrityError, PlanError  # noqa: E402
from pipeline.sampling.plan import Window  # noqa: E402
from pipeline.scan.store import open_scan, write_scan  # noqa: E402
from pipeline.stream.measure import iterate  # noqa: E402
from pipeline.stream.scan_stream import Batch, ScanStream  # noqa: E402
from pipeline.stream.window import Residents, threads, window_graph  # noqa: E402
from tests.builders import make_counts, make_probe, make_scan  # noqa: E402
from tests.guards import REPOSITORY, run_command  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # 4 workers on 2 cores
MODES = {
    "shuffled": {},
    "cluster": {"batches": "cluster", "cluster_size": 3, "batch_size": 12},
    "sequential": {"batches": "sequential"},
    "gridsize 2": {"gridsize": 2},
    "gridsize 2 cluster": {"gridsize": 2, "batches": "cluster", "cluster_size": 3, "batch_size": 12},
}


def config(**options: object) -> StreamConfig:
    """A batch size that divides nothing, two epochs."""
    return StreamConfig(**{"batch_size": 13, "epochs": 2, "seed": 3, **options})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 40 chunks (more than a window) of 4 frames of 512 x 512, with an invalid frame and a probe."""
    n, side = 157, 512
    rng = np.random.default_rng(0)
    counts = np.zeros((n, side, side), np.uint16)
    counts[:, ::16, ::16] = rng.poisson(5, (n, 32, 32)) + np.arange(n)[:, None, None]
    scan = make_scan(n_frames=n)
    scan = xr.Dataset(
        {
            "diffraction": (("frame", "detector_y", "detector_x"), counts, scan["diffraction"].attrs),
            "position_y": scan["position_y"],
            "position_x": scan["position_x"],
            "frame_index": scan["frame_index"],
            "frame_valid": (("frame",), np.arange(n) != 20),
        },
        attrs=scan.attrs,
    )
    path = tmp_path_factory.mktemp("stream") / "scan.zarr"
    write_scan(scan, path)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One chunk of 45 frames of 8 x 8 with probe and labels."""
    scan = make_scan(n_frames=45, modes=2)
    labels = np.stack([make_probe(seed=i)[0] for i in range(45)])
    path = tmp_path_factory.mktemp("stream") / "small.zarr"
    write_scan(scan.assign(label=(("frame", "probe_y", "probe_x"), labels)), path)
    return path


def digest(batch: Batch) -> str:
    """A hash of everything that a batch holds."""
    tensors = [t for t in batch if isinstance(t, torch.Tensor)]
    content = b"".join(t.contiguous().numpy().tobytes() for t in tensors)
    return hashlib.sha256(content + f"{batch.epoch}/{batch.step}".encode()).hexdigest()


@pytest.mark.parametrize("mode", MODES)
def test_order_and_content_are_the_same_for_any_number_of_workers(store: Path, mode: str) -> None:
    told = [
        iterate(ScanStream(store, config(**MODES[mode])), num_workers=workers, content=True) for workers in (0, 1, 2, 4)
    ]
    assert len({(t.order_sha256, t.content_sha256, t.frames) for t in told}) == 1


@pytest.mark.parametrize("mode", ["shuffled", "sequential"])
def test_each_chunk_is_decoded_once_an_epoch(store: Path, mode: str) -> None:
    stream = ScanStream(store, config(**MODES[mode]))
    told = iterate(stream)
    assert told.chunks_decoded == 2 * stream.record.arrays["diffraction"].layout.n_chunks


@pytest.mark.parametrize("mode", MODES)
def test_a_state_taken_at_any_batch_gives_the_same_tail(small: Path, mode: str) -> None:
    stream = ScanStream(small, config(**MODES[mode]))
    batches = list(stream)
    whole = [digest(batch) for batch in batches]
    for taken, batch in enumerate(batches):
        state = json.loads(json.dumps(stream.state_dict(after=batch)))
        assert len(json.dumps(state)) <= 1024
        again = ScanStream(small, config(**MODES[mode]))
        again.load_state_dict(state)
        assert [digest(b) for b in again] == whole[taken + 1 :]


def test_the_stream_itself_knows_how_far_it_was_read(small: Path) -> None:
    stream = ScanStream(small, config())
    running = iter(stream)
    for _ in range(3):
        last = next(running)
    assert stream.state_dict() == stream.state_dict(after=last)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_state_is_good_in_a_new_process_with_other_workers(store: Path, workers: int) -> None:
    batches = list(DataLoader(ScanStream(store, config()), batch_size=None, num_workers=1))
    state = ScanStream(store, config()).state_dict(after=batches[6])
    script = (
        "import hashlib, json, sys, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "from torch.utils.data import DataLoader\n"
        "from pipeline.stream.scan_stream import ScanStream, StreamConfig\n"
        "stream = ScanStream(sys.argv[1], StreamConfig(batch_size=13, epochs=2, seed=3))\n"
        "stream.load_state_dict(json.loads(sys.argv[2]))\n"
        "for batch in DataLoader(stream, batch_size=None, num_workers=int(sys.argv[3])):\n"
        "    print(hashlib.sha256(batch.diffraction.numpy().tobytes() + batch.indices.numpy().tobytes()).hexdigest())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(store), json.dumps(state), str(workers)],
        capture_output=True, text=True, cwd=REPOSITORY, check=False,
    )  # fmt: skip
    expected = [
        hashlib.sha256(b.diffraction.numpy().tobytes() + b.indices.numpy().tobytes()).hexdigest() for b in batches[7:]
    ]
    assert (done.stdout.split(), done.stderr) == (expected, "")


def test_a_batch_holds_what_the_scan_holds(small: Path) -> None:
    scan = open_scan(small).load(scheduler="synchronous")
    positions = np.stack([scan["position_y"].values, scan["position_x"].values], axis=1)
    for batch in ScanStream(small, config(gridsize=2, epochs=1)):
        frames = batch.indices.numpy()
        np.testing.assert_array_equal(batch.diffraction.numpy(), scan["diffraction"].values[frames])
        np.testing.assert_array_equal(batch.positions.numpy(), positions[frames])
        np.testing.assert_array_equal(batch.label.numpy(), scan["label"].values[frames])
        np.testing.assert_array_equal(batch.probe.numpy(), scan["probe"].values)
        np.testing.assert_allclose((batch.offsets[:, None] + batch.relative).numpy(), positions[frames])
        np.testing.assert_allclose(batch.relative.sum(dim=1).numpy(), 0, atol=1e-12)


def test_invalid_frames_are_skipped_and_counted(store: Path) -> None:
    stream = ScanStream(store, config(batches="sequential", epochs=1))
    seen = torch.cat([batch.indices.flatten() for batch in stream])
    assert stream.n_invalid == 1
    assert sorted(seen.tolist()) == [i for i in range(157) if i != 20]


def test_a_mask_restricts_every_mode_and_belongs_to_the_identity(store: Path) -> None:
    mask = np.arange(157) % 3 == 0
    hashes = set()
    for options in MODES.values():
        stream = ScanStream(store, config(epochs=1, **options), frames=mask)
        seen = torch.cat([batch.indices.flatten() for batch in stream])
        assert mask[seen.numpy()].all()
        hashes |= {stream.order_sha256(), ScanStream(store, config(epochs=1, **options)).order_sha256()}
    assert len(hashes) == 2 * len(MODES)


def test_a_state_of_another_store_or_order_is_refused_and_named(store: Path, small: Path) -> None:
    state = ScanStream(small, config()).state_dict()
    with pytest.raises(IntegrityError, match="store_sha256"):
        ScanStream(store, config()).load_state_dict(state)
    with pytest.raises(IntegrityError, match="seed"):
        ScanStream(small, config(seed=9)).load_state_dict(state)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_chunk_stops_the_stream_and_is_named(tmp_path: Path, workers: int) -> None:
    write_scan(make_scan(n_frames=45), tmp_path / "s.zarr")
    chunk = tmp_path / "s.zarr" / "diffraction" / "c.0.0.0"
    chunk.write_bytes(chunk.read_bytes()[::-1])
    with pytest.raises(IntegrityError, match=r"diffraction chunk 0 \(frames 0-44\)"):
        iterate(ScanStream(tmp_path / "s.zarr", config()), num_workers=workers)


@pytest.mark.parametrize(
    ("options", "kind"),
    [({"gridsize": 2, "neighbors": 3}, PlanError), ({"batches": "cluster", "cluster_size": 5}, PlanError)],
)
def test_an_order_that_cannot_be_is_refused_before_any_work(
    small: Path, options: dict[str, object], kind: type[Exception]
) -> None:
    with pytest.raises(kind):
        ScanStream(small, config(**options))


def test_a_mask_of_another_length_or_without_frames_is_refused(small: Path) -> None:
    with pytest.raises(ConfigError):
        ScanStream(small, config(), frames=np.ones(3, bool))
    with pytest.raises(PlanError):
        ScanStream(small, config(), frames=np.zeros(45, bool))


def test_a_window_is_a_graph_of_tasks_per_chunk_group_and_none_per_frame(store: Path, small: Path) -> None:
    for path, tasks in ((store, 40), (small, 1)):
        stream = ScanStream(path, config())
        refs = dict(enumerate(stream.chunk_refs()))
        assert len(window_graph(refs)) == tasks


def test_a_chunk_that_the_next_window_left_out_because_it_was_there_is_kept_for_it(store: Path) -> None:
    refs = ScanStream(store, config()).chunk_refs()
    line = [Window(chunks=(0, 1), first_step=0, last_step=1), Window(chunks=(1, 2), first_step=3, last_step=4)]
    with threads() as running:
        residents = Residents(refs, iter(line), lanes=1, threads=running)
        open_chunks = [set(residents.at(step)) for step in range(5)]
    assert (open_chunks[0], open_chunks[3], residents.n_decoded) == ({0, 1}, {1, 2}, 3)


def test_the_command_prints_the_hashes_of_a_store_and_of_its_npz(tmp_path: Path) -> None:
    made = ("pipeline.simulate", "--recipe", "demo", "--output")
    assert run_command(*made, tmp_path / "s.npz").returncode == 0
    assert run_command("converters.npz2zarr", tmp_path / "s.npz", tmp_path / "s.zarr").returncode == 0
    told = [
        json.loads(run_command("pipeline.iterate", path, "--content-hash", "--json", "--num-workers", n).stdout)["data"]
        for path, n in ((tmp_path / "s.npz", "0"), (tmp_path / "s.zarr", "2"))
    ]
    assert told[0]["order_sha256"] == told[1]["order_sha256"]
    assert told[0]["content_sha256"] == told[1]["content_sha256"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.npz", "s.zarr"]


def test_counts_are_delivered_as_amplitude(small: Path) -> None:
    counts = make_counts(45)
    (batch,) = ScanStream(small, StreamConfig(batch_size=45, batches="sequential"))
    np.testing.assert_array_equal(batch.diffraction[:, 0].numpy(), np.sqrt(counts.astype(float)).astype(np.float32))

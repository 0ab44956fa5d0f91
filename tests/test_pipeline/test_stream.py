"""One order, everywhere: the same bytes for any workers, after any resume; read ahead, and no more than two windows."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from torch.utils.data import DataLoader  # noqa: E402  # behind the check that torch is there

from pipeline.config import StreamConfig  # noqa: E402
from pipeline.errors import ConfigError, EnvironmentFault, IntegrityError, PlanError  # noqa: E402
from pipeline.sampling.plan import EpochPlan, Layout, Window, plan_epoch, resolve_order  # noqa: E402
from pipeline.scan.store import open_scan, write_scan  # noqa: E402
from pipeline.stream.measure import iterate  # noqa: E402
from pipeline.stream.scan_stream import Batch, ScanStream  # noqa: E402
from pipeline.stream.waiting import TimedBatches, faults_of_workers  # noqa: E402
from pipeline.stream.window import Residents, by_epoch, threads, window_graph, windows_in_line  # noqa: E402
from tests.builders import make_counts, make_probe, make_scan  # noqa: E402
from tests.guards import REPOSITORY, run_command  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # 4 workers on 2 cores
MODES = {
    "shuffled": {},
    "cluster": {"batches": "cluster", "cluster_size": 3, "batch_size": 12},
    "sequential": {"batches": "sequential"},
    "gridsize 2": {"gridsize": 2},
    "gridsize 2 cluster": {"gridsize": 2, "batches": "cluster", "cluster_size": 3, "batch_size": 12},
    "gridsize 2 within a window": {"gridsize": 2, "neighbors_within": "window", "batch_size": 12},
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


WITHIN = {"gridsize": 2, "neighbors_within": "window"}


@pytest.mark.parametrize(
    "options",
    [
        MODES["shuffled"], MODES["sequential"], WITHIN, {**WITHIN, "batch_size": 12}, {**WITHIN, "n_groups": 100},
        {**WITHIN, "batches": "sequential"}, {**WITHIN, **MODES["cluster"]},
    ],
    ids=str,
)  # fmt: skip
def test_each_chunk_is_decoded_at_most_once_an_epoch(store: Path, options: dict[str, object]) -> None:
    stream = ScanStream(store, config(**options, epochs=3))
    told = iterate(stream)
    assert told.chunks_decoded is not None
    assert 40 <= told.chunks_decoded <= 3 * 40


def test_free_neighbours_decode_chunks_again_and_those_within_a_window_lie_together(store: Path) -> None:
    free = ScanStream(store, config(gridsize=2, batch_size=12))
    decoded = iterate(free).chunks_decoded
    assert decoded is not None
    assert decoded > 2 * 2 * 40
    within = ScanStream(store, config(**MODES["gridsize 2 within a window"]))
    spread = np.ptp(within.members // 4, axis=1)  # chunks of 4 frames, windows of at most 7
    assert spread.max() <= 6 < np.ptp(free.members // 4, axis=1).max()
    assert "neighbors_within" not in free.identity()
    assert within.identity()["neighbors_within"] == "window"


def test_what_could_not_be_had_is_said(small: Path) -> None:
    assert not ScanStream(small, config()).notes
    (said,) = ScanStream(small, config(batch_size=46)).notes
    assert "46 asked for, there are 45 groups" in said
    few = np.arange(45) < 6
    (said,) = ScanStream(small, config(gridsize=2, batch_size=2), frames=few).notes
    assert "7 neighbours asked for, there are 5" in said
    done = run_command("pipeline.iterate", small, "--batch-size", "46", "--n-groups", "50", "--json")
    told = json.loads(done.stdout)
    assert [("46" in said, "50" in said) for said in told["warnings"]] == [(False, True), (True, False)]
    assert (told["data"]["order"]["batch_size"], told["data"]["order"]["n_groups"]) == (45, 45)


@pytest.mark.parametrize("mode", MODES)
def test_a_scan_that_fits_the_window_is_decoded_once_for_all_epochs(store: Path, mode: str) -> None:
    first_25_chunks = np.arange(157) < 100
    told = iterate(ScanStream(store, config(**MODES[mode], epochs=3), frames=first_25_chunks))
    assert told.chunks_decoded == 25


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


class Watched(ScanStream):
    """A stream that notes which epochs were planned, and by which thread."""

    def __init__(self, path: Path, config: StreamConfig) -> None:
        super().__init__(path, config)
        self.planned: list[tuple[int, threading.Thread]] = []

    def plan(self, epoch: int) -> EpochPlan:
        self.planned.append((epoch, threading.current_thread()))
        return super().plan(epoch)

    def planned_in_time(self, epoch: int) -> bool:
        """Whether an epoch is planned before long."""
        end = time.monotonic() + 20
        while epoch not in [number for number, _ in self.planned] and time.monotonic() < end:
            time.sleep(0.01)
        return time.monotonic() < end


def test_the_next_batch_and_no_further_one_is_made_while_one_is_used(small: Path) -> None:
    stream = Watched(small, config(batch_size=45, epochs=10**9))  # a batch is an epoch, so a plan tells that it is made
    running = iter(stream)
    first = next(running)
    assert stream.planned_in_time(1)
    assert stream.state_dict() == stream.state_dict(after=first)  # what is made ahead is not delivered
    time.sleep(0.2)
    assert [number for number, _ in stream.planned] == [0, 1]
    assert threading.current_thread() not in [thread for _, thread in stream.planned]
    assert next(running).epoch == 1
    running.close()


@pytest.mark.parametrize("mode", ["shuffled", "cluster", "sequential"])
def test_an_epoch_does_not_depend_on_how_many_follow(store: Path, mode: str) -> None:
    few = [digest(batch) for batch in ScanStream(store, config(**MODES[mode]))]
    running = iter(ScanStream(store, config(**MODES[mode], epochs=10**9)))
    assert [digest(next(running)) for _ in few] == few
    running.close()


def used_up(running: Iterator[Batch]) -> None:
    list(running)


def closed(running: Iterator[Batch]) -> None:
    next(running)
    running.close()  # type: ignore[attr-defined]


def left_by_an_error_of_the_consumer(running: Iterator[Batch]) -> None:
    with contextlib.suppress(ZeroDivisionError):
        for batch in running:
            batch.step // 0


def stopped_by_damage(running: Iterator[Batch]) -> None:
    with pytest.raises(IntegrityError):
        list(running)


@pytest.mark.parametrize("end", [used_up, closed, left_by_an_error_of_the_consumer, stopped_by_damage])
def test_no_thread_is_left_when_an_iteration_ends(
    store: Path, tmp_path: Path, end: Callable[[Iterator[Batch]], None]
) -> None:
    if end is stopped_by_damage:
        store = damaged_copy(store, tmp_path, chunk=39)
    before = set(threading.enumerate())
    running = iter(ScanStream(store, config()))
    assert set(threading.enumerate()) == before
    end(running)
    del running
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("which", ["making", "reading", "decoding"])
def test_an_iteration_can_be_closed_by_one_of_its_own_threads(which: str) -> None:
    opened = threads()
    pool = getattr(opened.__enter__(), which)
    pool.submit(opened.__exit__, None, None, None).result(timeout=20)


def test_what_is_left_to_do_at_the_end_is_dropped() -> None:
    with threads() as running:
        reads = [running.reading.submit(time.sleep, 0.2) for _ in range(50)]
        making = running.making.submit(reads[-1].result)  # as a batch waits for its window
    assert reads[-1].cancelled()
    assert isinstance(making.exception(), CancelledError)


def test_a_batch_is_let_go_of_when_the_next_one_is_taken(small: Path) -> None:
    taken: list[weakref.ref[torch.Tensor]] = []
    for batch in ScanStream(small, config()):
        assert [ref() for ref in taken] == [None] * len(taken)
        taken.append(weakref.ref(batch.diffraction))


ENDS = """
import sys
from pipeline.stream.scan_stream import ScanStream, StreamConfig
running = iter(ScanStream(sys.argv[1], StreamConfig(batch_size=13, epochs=10**9)))
next(running)
print("ready", flush=True)
"""


def test_an_interpreter_with_an_open_iteration_exits(store: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDS, str(store)], capture_output=True, text=True, cwd=REPOSITORY, timeout=60,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "ready\n", "")


def test_an_interrupt_ends_an_iteration(store: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", f"{ENDS}for batch in running: pass", str(store)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert told.splitlines()[-1] == "KeyboardInterrupt"


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_deliver_the_rest_of_an_iteration_that_still_runs_here(small: Path, start: str) -> None:
    whole = [digest(batch) for batch in ScanStream(small, config())]
    stream = ScanStream(small, config())
    running = iter(stream)
    next(running)
    loader = DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context=start)
    assert [digest(batch) for batch in loader] == whole[1:]
    running.close()


def test_workers_that_are_left_early_end(small: Path) -> None:
    loader = iter(DataLoader(ScanStream(small, config(epochs=10**9)), batch_size=None, num_workers=2))
    next(loader)
    workers = multiprocessing.active_children()
    del loader
    assert workers
    assert not [worker for worker in workers if worker.is_alive()]


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


def damaged_copy(store: Path, folder: Path, *, chunk: int) -> Path:
    """The same store with one chunk of frames reversed."""
    copy = folder / "damaged.zarr"
    shutil.copytree(store, copy)
    file = copy / "diffraction" / f"c.{chunk}.0.0"
    file.write_bytes(file.read_bytes()[::-1])
    return copy


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_chunk_stops_the_stream_at_its_window_and_is_named(store: Path, tmp_path: Path, workers: int) -> None:
    whole = [digest(batch) for batch in ScanStream(store, config(batches="sequential"))]
    stream = ScanStream(damaged_copy(store, tmp_path, chunk=39), config(batches="sequential"))
    delivered = []
    with pytest.raises(IntegrityError, match=r"diffraction chunk 39 \(frames 156-156\)"):
        for batch in DataLoader(stream, batch_size=None, num_workers=workers):
            delivered.append(digest(batch))  # a list made in one go would be lost with the error
    valid_frames_of_the_first_window = 28 * 4 - 1
    assert delivered == whole[: valid_frames_of_the_first_window // 13]


def test_a_damaged_chunk_is_the_same_error_with_workers_as_without(store: Path, tmp_path: Path) -> None:
    stream, told = ScanStream(damaged_copy(store, tmp_path, chunk=3), config(batches="sequential")), []
    for workers in (0, 2):
        batches = TimedBatches(stream, num_workers=workers)
        with pytest.raises(IntegrityError) as caught:
            next(batches)
        told.append((caught.value.message, caught.value.code, caught.value.hint))
        batches.close()
    assert told[0] == told[1]
    assert "\n" not in told[0][0]


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_dies_is_a_fault_of_the_machine(small: Path, sent: signal.Signals) -> None:
    batches = TimedBatches(ScanStream(small, config(epochs=10**9)), num_workers=2)
    next(batches)
    os.kill(multiprocessing.active_children()[0].pid, sent)
    with pytest.raises(EnvironmentFault, match="a reading process ended"), faults_of_workers():
        for _ in batches:
            time.sleep(0.001)
    batches.close()


def test_labels_are_read_only_where_they_are_asked_for(small: Path, tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    shutil.copytree(small, store)
    assert next(iter(ScanStream(store, config()))).label is not None
    for chunk in (store / "label").glob("c.*"):
        chunk.write_bytes(chunk.read_bytes()[::-1])
    with pytest.raises(IntegrityError, match="label"):
        next(iter(ScanStream(store, config())))
    assert next(iter(ScanStream(store, config(), labels=False))).label is None


@pytest.mark.parametrize(
    ("options", "kind"),
    [({"gridsize": 2, "neighbors": 3}, PlanError), ({"batches": "cluster", "cluster_size": 5}, PlanError)],
)
def test_an_order_that_cannot_be_is_refused_before_any_work(
    small: Path, options: dict[str, object], kind: type[Exception]
) -> None:
    with pytest.raises(kind):
        ScanStream(small, config(**options))


@pytest.mark.parametrize("gridsize", [1, 2])
def test_a_subsample_is_drawn_by_the_seed_before_anything_is_grouped(small: Path, gridsize: int) -> None:
    one, same, other = (ScanStream(small, config(n_subsample=20, gridsize=gridsize, seed=seed)) for seed in (3, 3, 4))
    kept = set(one.members.reshape(-1).tolist())
    assert len(one.members) == 20
    assert len(kept) == 20
    assert np.array_equal(one.members, same.members)
    assert kept != set(other.members.reshape(-1).tolist())
    assert one.identity()["n_subsample"] == 20
    whole = ScanStream(small, config(gridsize=gridsize))
    assert "n_subsample" not in whole.identity()
    all_of_them = ScanStream(small, config(gridsize=gridsize, n_subsample=1000))
    assert np.array_equal(all_of_them.members, whole.members)
    with pytest.raises(PlanError, match="at least 1"):
        ScanStream(small, config(n_subsample=0))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--neighbors", "7"), "gridsize is 1"),
        (("--neighbors-within", "window"), "gridsize is 1"),
        (("--allow-oversampling",), "gridsize is 1"),
    ],
)
def test_an_option_about_groups_is_not_ignored_where_a_group_is_a_frame(
    small: Path, options: tuple[str, ...], said: str
) -> None:
    done = run_command("pipeline.iterate", small, *options)
    assert (done.returncode, said in done.stderr) == (2, True)


def test_a_subsample_from_the_command_line_visits_those_frames(small: Path) -> None:
    done = run_command("pipeline.iterate", small, "--n-subsample", "20", "--batches", "sequential", "--json")
    data = json.loads(done.stdout)["data"]
    assert (data["frames"], data["order"]["n_subsample"], data["order"]["n_groups"]) == (20, 20, 20)


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


def line_of(batch_size: int, steps: range) -> tuple[list[EpochPlan], Iterator[Window], int]:
    """Three epochs of 157 frames in 40 chunks and windows of 8; the windows that some steps read; the lanes."""
    layout = Layout(
        chunk_of=np.arange(157) // 4, n_chunks=40, positions=np.zeros((157, 2)), eligible=np.ones(157, bool)
    )
    order = resolve_order(batches="shuffled", batch_size=batch_size, n_frames=157, window_chunks=8)
    plans = [plan_epoch(layout, order, seed=1, epoch=epoch) for epoch in range(3)]
    return plans, windows_in_line(plans.__getitem__, steps, plans[0].n_steps), order.lanes


@pytest.mark.parametrize("stride", [1, 2, 30])
@pytest.mark.parametrize("batch_size", [3, 6, 8])
def test_every_chunk_of_a_step_is_there_and_never_more_than_two_windows(
    store: Path, batch_size: int, stride: int
) -> None:
    refs = ScanStream(store, config()).chunk_refs()
    n_steps = 157 // batch_size
    steps = range(7, 3 * n_steps, stride)
    plans, line, lanes = line_of(batch_size, steps)
    with threads() as running:
        residents = Residents(refs, line, lanes=lanes, threads=running)
        for step in steps:
            needed = np.unique(plans[step // n_steps].batch(step % n_steps) // 4)
            assert set(needed.tolist()) <= set(residents.at(step))
            assert len(residents.held()) <= 2 * 8


def test_each_lane_has_its_next_window_read_ahead_also_at_the_end_of_an_epoch(store: Path) -> None:
    refs = ScanStream(store, config()).chunk_refs()
    steps = range(3 * 19)
    plans, line, lanes = line_of(8, steps)
    assert lanes == 4
    with threads() as running:
        residents = Residents(refs, line, lanes=lanes, threads=running)
        for step in range(19):
            residents.at(step)
        first_of_next = {c for window in plans[1].windows if window.first_step == 0 for c in window.chunks}
        assert first_of_next <= residents.held()


@pytest.mark.parametrize("stride", [1, 3, 40])
def test_windows_that_no_step_of_a_worker_reads_are_left_out(stride: int) -> None:
    steps = range(2, 3 * 19, stride)
    _, line, _ = line_of(8, steps)
    windows = list(line)
    assert windows
    assert all(window.first_step in steps and window.last_step in steps for window in windows)
    assert [w.first_step for w in windows] == sorted(w.first_step for w in windows)


def test_an_epoch_is_planned_when_its_first_window_is_asked_for(store: Path) -> None:
    stream = Watched(store, config(epochs=10**9))
    n_steps = stream.plan(0).n_steps
    stream.planned.clear()
    line = windows_in_line(stream.plan, range(10**9 * n_steps), n_steps)
    while next(line).first_step < n_steps:
        pass
    assert [epoch for epoch, _ in stream.planned] == [0, 1]


def test_epochs_without_a_step_of_a_worker_are_passed_over() -> None:
    far_apart = range(5, 10**15, 3 * 10**14)
    assert [(epoch, list(steps)) for epoch, steps in by_epoch(far_apart, 10)] == [(n // 10, [n]) for n in far_apart]


def test_the_time_that_the_consumer_waits_is_measured(store: Path) -> None:
    told = iterate(ScanStream(store, config()))
    assert 0 < told.wait_s < told.seconds


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

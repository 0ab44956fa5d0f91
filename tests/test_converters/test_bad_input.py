"""Whatever is wrong with an input: one line that says so, the right exit code, and no trace of an attempt."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from converters import inspect, npz2zarr, zarr2npz
from pipeline.errors import IntegrityError, PipelineError, SourceError
from pipeline.scan.declaration import Declaration
from pipeline.scan.ingest import ingest, plan_ingest
from tests.builders import (
    ZipEntry,
    craft_zip,
    deflated,
    legacy_members,
    make_counts,
    npy_bytes,
    npy_files,
    npy_with_header,
    tree_bytes,
    write_legacy_npz,
    write_zip,
)
from tests.guards import REPOSITORY, run_command, run_main

N_FRAMES, SIDE = 12, 8
COUNTS = make_counts(N_FRAMES, SIDE, SIDE)
NOISE = np.random.default_rng(3).random(COUNTS.shape)


@dataclass(frozen=True, kw_only=True)
class Bad:
    """A bad input: what to write, and what must be said of it."""

    write: Callable[[Path], object]
    code: str
    exit: int = 4
    says: str = ""
    hint: str | None = None
    options: tuple[str, ...] = ()


def scan(**more: Any) -> Callable[[Path], object]:
    """A legacy file of twelve frames, with other members."""
    return lambda path: write_legacy_npz(path, legacy_members(COUNTS, **more))


def raw(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def crafted(*more: ZipEntry) -> Callable[[Path], object]:
    """A good file with more members that are made by hand."""
    good = [ZipEntry(name=name.encode(), data=data) for name, data in npy_files(legacy_members(COUNTS))]
    return lambda path: craft_zip(path, [*good, *more])


def cut(path: Path) -> None:
    scan()(path)
    path.write_bytes(path.read_bytes()[:-100])


def damaged(path: Path) -> None:
    """One bit of one count, in a stored member."""
    scan()(path)
    whole = bytearray(path.read_bytes())
    whole[whole.index(COUNTS.tobytes()) + 5] ^= 1
    path.write_bytes(whole)


def with_value(value: float, dtype: str = "f4") -> np.ndarray:
    frames = COUNTS.astype(dtype)
    frames[9, 3, 5] = value
    return frames


def declared_beside(path: Path) -> None:
    scan()(path)
    path.with_suffix(".toml").write_text('quantiy = "counts"')


def pickled(content: object) -> np.ndarray:
    array = np.empty((), dtype=object)
    array[()] = content
    return array


LIE = npy_with_header({"descr": "<f4", "fortran_order": False, "shape": (10**12,)}, bytes(64))
EXTRA = npy_bytes(np.arange(3))
OPTION = "--quantity counts|intensity|amplitude"
FINITE = "frame 9, pixel [3, 5] is"

ABOVE_32_BITS = Bad(
    write=scan(diffraction=with_value(2**40, "u8")), code="npz.bad_value", says="1099511627776 exceeds 4294967295"
)
BEYOND_FLOAT32 = Bad(
    write=scan(diffraction=with_value(1e300, "f8")),
    options=("--quantity", "intensity"),
    code="npz.bad_value",
    says="1e+300",
)
BAD = {
    "no zip": Bad(write=raw(b"frame,x,y\n1,2,3\n"), code="npz.not_zip", says="not a zip file"),
    "empty file": Bad(write=raw(b""), code="npz.not_zip", says="not a zip file"),
    "one npy array": Bad(write=raw(npy_bytes(COUNTS)), code="npz.not_zip", says=".npy", hint="numpy.savez"),
    "folder": Bad(write=Path.mkdir, code="npz.not_zip", says="a folder"),
    "missing": Bad(write=lambda path: None, code="source.not_found", exit=5, says="no such file"),
    "truncated": Bad(write=cut, code="npz.not_zip", says="truncated?"),
    "damaged": Bad(write=damaged, code="npz.crc", exit=6, says="'diffraction': CRC-32 is"),
    "no members": Bad(write=lambda path: write_zip(path, []), code="npz.no_stack", says="no members"),
    "neither key": Bad(write=scan(diffraction=None), code="npz.no_stack", says="neither 'diffraction' nor 'diff3d'"),
    "both keys": Bad(
        write=scan(diff3d=COUNTS + np.uint16(1)), code="npz.ambiguous_stack", says="differ", hint="--key diffraction"
    ),
    "no positions": Bad(write=scan(ycoords=None), code="npz.no_positions", says="no 'ycoords'"),
    "too few positions": Bad(
        write=scan(xcoords=np.arange(11.0), ycoords=np.arange(11.0)),
        code="npz.length_mismatch",
        says="11 positions, but the stack (12, 8, 8)",
    ),
    "too many positions": Bad(
        write=scan(xcoords=np.arange(13.0), ycoords=np.arange(13.0)), code="npz.length_mismatch", says="13 positions"
    ),
    "positions of two lengths": Bad(
        write=scan(xcoords=np.arange(13.0)), code="npz.length_mismatch", says="13 xcoords but 12 ycoords"
    ),
    "position is NaN": Bad(
        write=scan(xcoords=np.where(np.arange(12) == 7, np.nan, 3.0)), code="npz.bad_value", says="xcoords[7] is nan"
    ),
    "metres or pixels": Bad(
        write=scan(xcoords=np.linspace(0, 1e-6, 12), ycoords=np.linspace(0, 1e-6, 12)),
        code="npz.ambiguous_positions",
        says="spread over 1e-06",
        hint="--positions metre --pixel-size-m SIZE",
    ),
    "pickled object": Bad(
        write=scan(objectGuess=pickled({"a": 1})),
        code="npz.object_member",
        says="'objectGuess'",
        hint="numbers or text",
    ),
    "pickled metadata": Bad(
        write=scan(_metadata=pickled({"a": 1})), code="npz.object_member", says="not unpickled", hint="numbers or text"
    ),
    "metadata that is no JSON": Bad(
        write=scan(_metadata=pickled("hello")),
        code="npz.object_member",
        says="something else than one JSON string",
        hint="numbers or text",
    ),
    "NaN": Bad(write=scan(diffraction=with_value(np.nan)), code="npz.bad_value", says=f"{FINITE} nan"),
    "infinite": Bad(write=scan(diffraction=with_value(np.inf, "f8")), code="npz.bad_value", says=f"{FINITE} inf"),
    "minus infinite": Bad(write=scan(diffraction=with_value(-np.inf)), code="npz.bad_value", says=f"{FINITE} -inf"),
    "negative": Bad(write=scan(diffraction=with_value(-2.0)), code="npz.bad_value", says=f"{FINITE} -2.0"),
    "negative integer": Bad(write=scan(diffraction=with_value(-2, "i4")), code="npz.bad_value", says=f"{FINITE} -2"),
    "complex frames": Bad(write=scan(diffraction=COUNTS.astype("c8")), code="npz.complex_stack", says="is complex"),
    "two axes": Bad(write=scan(diffraction=COUNTS[0]), code="npz.stack_rank", says="shape (8, 8)"),
    "five axes": Bad(write=scan(diffraction=COUNTS[..., None, None]), code="npz.stack_rank", says="(12, 8, 8, 1, 1)"),
    "no frames": Bad(write=scan(diffraction=COUNTS[:0]), code="npz.empty_stack", says="empty, shape (0, 8, 8)"),
    "cube": Bad(
        write=lambda path: write_legacy_npz(path, legacy_members(make_counts(8, 8, 8))),
        code="npz.ambiguous_axes",
        says="the stack (8, 8, 8) with 8 positions",
        hint="--axes fyx or --axes yxf",
    ),
    "frames in the middle": Bad(
        write=scan(diffraction=COUNTS.transpose(1, 0, 2)), code="npz.ambiguous_axes", says="middle", hint="--axes yfx"
    ),
    "floats": Bad(write=scan(diffraction=NOISE), code="npz.ambiguous_quantity", says="nothing says", hint=OPTION),
    "counts as floats": Bad(
        write=scan(diffraction=COUNTS.astype("f4")), code="npz.ambiguous_quantity", says="perfect square", hint=OPTION
    ),
    "fractions declared counts": Bad(
        write=scan(diffraction=NOISE),
        options=("--quantity", "counts"),
        code="npz.bad_value",
        says="is no whole count",
        hint="--quantity intensity",
    ),
    "integers declared amplitude": Bad(
        write=scan(), options=("--quantity", "amplitude"), code="npz.quantity_contradiction", says="holds integers"
    ),
    "counts above 32 bits": ABOVE_32_BITS,
    "beyond float32": BEYOND_FLOAT32,
    "member twice": Bad(
        write=crafted(ZipEntry(name=b"xcoords.npy", data=EXTRA)),
        code="npz.duplicate_member",
        says="'xcoords' occurs twice",
    ),
    "member with and without .npy": Bad(
        write=crafted(ZipEntry(name=b"xcoords", data=EXTRA)),
        code="npz.foreign_member",
        says="'xcoords' is not an array",
    ),
    "overlapping members": Bad(
        write=crafted(ZipEntry(name=b"e.npy", data=EXTRA, at=0)), code="npz.overlap", says="'e.npy' overlaps"
    ),
    "member longer than its header": Bad(
        write=crafted(ZipEntry(name=b"e.npy", data=EXTRA + b"x")), code="npz.size_mismatch", says="header promises"
    ),
    "header that lies": Bad(
        write=crafted(ZipEntry(name=b"e.npy", data=LIE)), code="npz.size_mismatch", says="promises 4000000000"
    ),
    "directory that lies": Bad(
        write=crafted(
            ZipEntry(
                name=b"e.npy",
                data=deflated(LIE),
                plain=LIE,
                method=zipfile.ZIP_DEFLATED,
                local={"size": 2**32 - 2},
                listed={"size": 2**32 - 2},
            )
        ),
        code="npz.size_mismatch",
        says="'e'",
    ),
    "dtype that is none": Bad(
        write=crafted(
            ZipEntry(name=b"e.npy", data=npy_with_header({"descr": "<zz", "fortran_order": False, "shape": ()}))
        ),
        code="npz.header",
        says="'<zz'",
    ),
    "hostile name": Bad(
        write=crafted(ZipEntry(name=b"\x1b[2Je.npy", data=EXTRA)), code="npz.member_name", says=r"\x1b[2J"
    ),
    "text file inside": Bad(
        write=crafted(ZipEntry(name=b"readme.txt", data=b"hi")), code="npz.foreign_member", says="'readme.txt'"
    ),
    "bytes behind": Bad(
        write=lambda path: path.write_bytes(_whole(path) + b"x"), code="npz.unlisted_bytes", says="bytes after the end"
    ),
    "two archives in one": Bad(
        write=lambda path: path.write_bytes(_whole(path) * 2), code="npz.unlisted_bytes", says="unlisted bytes"
    ),
    "key of the TOML unknown": Bad(
        write=declared_beside, code="config.unknown_key", exit=2, says="'quantiy'", hint="did you mean quantity?"
    ),
    "option without its other": Bad(
        write=scan(), options=("--positions", "metre"), code="config.pixel_size", exit=2, hint="--pixel-size-m"
    ),
    "option of unknown value": Bad(
        write=scan(), options=("--axes", "xyz"), code="usage", exit=2, says="'fyx', 'yxf', 'yfx'", hint="--help"
    ),
    "option that is none": Bad(
        write=scan(), options=("--axis", "fyx"), code="usage", exit=2, says="--axis", hint="--help"
    ),
}


def _whole(path: Path) -> bytes:
    scan()(path)
    return path.read_bytes()


@pytest.fixture(params=BAD)
def bad(request: pytest.FixtureRequest) -> Bad:
    """Each bad input in turn."""
    found: Bad = BAD[request.param]
    return found


def convert(folder: Path, bad: Bad, *more: str) -> subprocess.CompletedProcess[str]:
    """Try to convert it, from one folder to another."""
    (folder / "in").mkdir()
    (folder / "out").mkdir()
    bad.write(folder / "in" / "s.npz")
    return run_main(npz2zarr.main, folder / "in" / "s.npz", folder / "out" / "t.zarr", *bad.options, *more)


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("error: ")]


def test_a_bad_input_ends_in_its_exit_code(tmp_path: Path, bad: Bad) -> None:
    assert convert(tmp_path, bad).returncode == bad.exit


def test_a_bad_input_is_told_in_one_line_that_names_the_file(tmp_path: Path, bad: Bad) -> None:
    done = convert(tmp_path, bad)
    (line,) = errors(done)
    assert bad.says in line
    assert str(tmp_path / "in" / "s.") in line or bad.exit == 2 or bad is BEYOND_FLOAT32
    assert done.stdout == ""


def test_a_bad_input_comes_with_the_option_that_settles_it(tmp_path: Path, bad: Bad) -> None:
    hints = [line for line in convert(tmp_path, bad).stderr.splitlines() if line.startswith("  hint: ")]
    wanted = [True] if bad.hint else []
    assert [(bad.hint or "--") in hint for hint in hints] == wanted or bad is ABOVE_32_BITS


def test_a_bad_input_leaves_no_trace(tmp_path: Path, bad: Bad) -> None:
    convert(tmp_path, bad)
    assert list((tmp_path / "out").iterdir()) == []
    assert {p.name for p in (tmp_path / "in").iterdir()} <= {"s.npz", "s.toml"}


def test_a_bad_input_is_one_json_object_that_programs_can_act_on(tmp_path: Path, bad: Bad) -> None:
    done = convert(tmp_path, bad, "--json", "--quiet")
    told = json.loads(done.stdout)
    assert (told["ok"], list(told), done.stderr) == (False, ["ok", "error"], "")
    error = told["error"]
    assert (error["code"], error["exit"], list(error)) == (bad.code, bad.exit, ["code", "message", "hint", "exit"])


def test_a_bad_input_cannot_be_planned_either(tmp_path: Path, bad: Bad) -> None:
    done = convert(tmp_path, bad, "--dry-run")
    sure_only_after_reading = {"npz.crc", "npz.bad_value"}
    assert done.returncode == bad.exit or (done.returncode == 0 and bad.code in sure_only_after_reading)


def test_inspecting_a_bad_input_tells_whether_an_option_settles_it(tmp_path: Path, bad: Bad) -> None:
    bad.write(tmp_path / "s.npz")
    done = run_main(inspect.main, tmp_path / "s.npz", *bad.options)
    expected = {4, 0} if bad.code in ("npz.crc", "npz.bad_value") else {bad.exit}
    assert done.returncode in ({3} if bad.code.startswith("npz.ambiguous_") else expected)


def test_each_ambiguity_names_an_option_that_does_settle_it(tmp_path: Path) -> None:
    settled = {
        "both keys": ["--key", "diff3d"],
        "cube": ["--axes", "yxf"],
        "frames in the middle": ["--axes", "yfx"],
        "metres or pixels": ["--positions", "metre", "--pixel-size-m", "1e-9"],
        "floats": ["--quantity", "intensity"],
        "counts as floats": ["--contract", "data-001"],
    }
    assert set(settled) == {name for name, bad in BAD.items() if bad.code.startswith("npz.ambiguous_")}
    for name, options in settled.items():
        (tmp_path / name).mkdir()
        assert convert(tmp_path / name, BAD[name], *options).returncode == 0, name


def test_a_bad_value_beyond_the_first_look_leaves_no_trace(tmp_path: Path) -> None:
    frames = np.sqrt(make_counts(400, 64, 64)).astype(np.float32)
    frames[399, 63, 62] = np.nan
    bad = Bad(write=lambda path: write_legacy_npz(path, legacy_members(frames)), code="npz.bad_value")
    done = convert(tmp_path, bad)
    assert (done.returncode, "frame 399, pixel [63, 62] is nan" in done.stderr) == (4, True)
    assert list((tmp_path / "out").iterdir()) == []


# --- the target -------------------------------------------------------------------------------------------------------


def exists_as(kind: str, target: Path) -> None:
    if kind == "file":
        target.write_text("mine")
    elif kind == "link to nothing":
        target.symlink_to(target.parent / "nothing")
    else:
        target.mkdir()
        if kind == "folder":
            (target / "mine").write_text("mine")
        elif kind == "damaged store":
            (target / "zarr.json").write_text("{}")
            (target / "manifest.json").write_text("{}")


@pytest.mark.parametrize("kind", ["file", "folder", "empty folder", "damaged store", "link to nothing"])
def test_a_target_that_exists_is_left_as_it_was(tmp_path: Path, kind: str) -> None:
    source, target = write_legacy_npz(tmp_path / "s.npz", legacy_members()), tmp_path / "t.zarr"
    exists_as(kind, target)
    before = tree_bytes(tmp_path)
    done = run_main(npz2zarr.main, source, target)
    assert (done.returncode, "--overwrite" in done.stderr, len(errors(done))) == (7, True, 1)
    assert tree_bytes(tmp_path) == before
    assert {p.name for p in tmp_path.iterdir()} == {"s.npz", "t.zarr"}


def test_a_store_of_another_source_is_left_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "t.zarr"
    run_main(npz2zarr.main, write_legacy_npz(tmp_path / "s.npz", legacy_members()), target)
    write_legacy_npz(tmp_path / "s.npz", legacy_members(make_counts(seed=5)))
    before = tree_bytes(tmp_path)
    assert run_main(npz2zarr.main, tmp_path / "s.npz", target).returncode == 7
    assert tree_bytes(tmp_path) == before


def test_a_failed_overwrite_leaves_the_old_store(tmp_path: Path) -> None:
    target = tmp_path / "t.zarr"
    run_main(npz2zarr.main, write_legacy_npz(tmp_path / "s.npz", legacy_members()), target)
    damaged(tmp_path / "s.npz")
    before = tree_bytes(tmp_path)
    assert run_main(npz2zarr.main, tmp_path / "s.npz", target, "--overwrite").returncode == 6
    assert tree_bytes(tmp_path) == before


def test_a_target_in_no_folder_is_not_found(tmp_path: Path) -> None:
    source = write_legacy_npz(tmp_path / "s.npz", legacy_members())
    done = run_main(npz2zarr.main, source, tmp_path / "none" / "t.zarr")
    assert (done.returncode, f"mkdir {tmp_path / 'none'}" in done.stderr) == (5, True)
    assert [p.name for p in tmp_path.iterdir()] == ["s.npz"]


# --- back to NPZ ------------------------------------------------------------------------------------------------------


def test_what_is_no_store_is_not_restored(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, code in {"missing": 5, "empty": 4}.items():
        done = run_main(zarr2npz.main, tmp_path / name, tmp_path / "back.npz")
        assert (done.returncode, len(errors(done))) == (code, 1), name
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_a_damaged_store_is_not_restored(tmp_path: Path, damage: str) -> None:
    store = tmp_path / "t.zarr"
    run_main(npz2zarr.main, write_legacy_npz(tmp_path / "s.npz", legacy_members()), store)
    chunk = store / "diffraction" / "c.0.0.0"
    whole = chunk.read_bytes()
    if damage == "delete":
        chunk.unlink()
    else:
        chunk.write_bytes(whole[:-1] if damage == "cut" else whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    done = run_main(zarr2npz.main, store, tmp_path / "back.npz")
    assert (done.returncode, len(errors(done)), "diffraction" in done.stderr) == (6, 1, True)
    assert {p.name for p in tmp_path.iterdir()} == {"s.npz", "t.zarr"}


# --- a source that changes under our hands ----------------------------------------------------------------------------


def flipped(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def appended(path: Path, at: int) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def replaced(path: Path, at: int) -> None:
    path.with_name("new").write_bytes(path.read_bytes())
    path.with_name("new").rename(path)


@pytest.mark.parametrize("where", ["read already", "not read yet"])
@pytest.mark.parametrize("change", [flipped, appended, replaced])
def test_a_source_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, change: Callable[[Path, int], None], where: str
) -> None:
    counts = make_counts(768, 64, 64)
    source, target = write_legacy_npz(tmp_path / "s.npz", legacy_members(counts)), tmp_path / "t.zarr"
    os.utime(source, ns=(0, 0))
    start = source.read_bytes().index(counts[0].tobytes())
    at = start if where == "read already" else start + counts.nbytes - 1
    plan = plan_ingest(source, Declaration())
    changed: list[int] = []

    def once(done: int) -> None:
        if not changed:
            change(source, at)
            changed.append(at)

    with pytest.raises((SourceError, IntegrityError)) as raised:
        ingest(plan, target, progress=once)
    assert raised.value.code in ("source.changed", "npz.crc")
    assert [p.name for p in tmp_path.iterdir()] == ["s.npz"]


def test_a_source_that_changes_and_hides_it_is_refused_by_its_checksum(tmp_path: Path) -> None:
    counts = make_counts(2048, 64, 64)
    source = write_legacy_npz(tmp_path / "s.npz", legacy_members(counts))
    plan = plan_ingest(source, Declaration())
    at = source.read_bytes().index(counts[0].tobytes()) + counts.nbytes - 1
    modified = source.stat().st_mtime_ns
    hidden: list[int] = []

    def hide(done: int) -> None:
        if not hidden:
            flipped(source, at)
            os.utime(source, ns=(modified, modified))
            hidden.append(at)

    with pytest.raises(IntegrityError, match="'diffraction': CRC-32 is"):
        ingest(plan, tmp_path / "t.zarr", progress=hide)


# --- a process of its own ---------------------------------------------------------------------------------------------


def test_a_shell_sees_what_programs_inside_see(tmp_path: Path) -> None:
    scan(diffraction=NOISE)(tmp_path / "s.npz")
    done = run_command("converters.npz2zarr", tmp_path / "s.npz", tmp_path / "t.zarr", "--json")
    inside = run_main(npz2zarr.main, tmp_path / "s.npz", tmp_path / "t.zarr", "--json")
    assert (done.returncode, done.stdout, done.stderr) == (inside.returncode, inside.stdout, inside.stderr)
    assert done.returncode == 4


WITH_LIMIT = """
import resource, runpy, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
runpy.run_module("converters.npz2zarr", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(("axes", "limit"), [("fyx", 0), ("fyx", 3_000), ("fyx", 100_000), ("yxf", 3_000)])
def test_a_full_disk_is_named_and_freed(tmp_path: Path, axes: str, limit: int) -> None:
    counts = np.random.default_rng(1).integers(0, 65536, (128, 32, 32), dtype=np.uint16)
    frames = counts if axes == "fyx" else np.ascontiguousarray(counts.transpose(1, 2, 0))
    write_legacy_npz(tmp_path / "s.npz", legacy_members(counts, diffraction=frames))
    done = subprocess.run(
        [sys.executable, "-c", WITH_LIMIT, str(limit), tmp_path / "s.npz", tmp_path / "t.zarr"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )
    assert (done.returncode, len(errors(done)), "Traceback" in done.stderr) == (8, 1, False)
    assert [p.name for p in tmp_path.iterdir()] == ["s.npz"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("axes", ["fyx", "yxf"])
def test_a_signal_in_the_middle_leaves_nothing(tmp_path: Path, number: int, code: int, axes: str) -> None:
    counts = np.random.default_rng(1).integers(0, 65536, (2400, 64, 64), dtype=np.uint16)
    frames = counts if axes == "fyx" else np.ascontiguousarray(counts.transpose(1, 2, 0))
    write_legacy_npz(tmp_path / "s.npz", legacy_members(counts, diffraction=frames))
    child = subprocess.Popen(
        [sys.executable, "-m", "converters.npz2zarr", tmp_path / "s.npz", tmp_path / "t.zarr"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    while not any(tmp_path.glob(".t.zarr.*/diffraction")):
        assert child.poll() is None
        time.sleep(0.002)
    child.send_signal(signal.SIGSTOP)  # so that it cannot end before the signal meets it
    assert not (tmp_path / "t.zarr").exists()
    child.send_signal(number)
    child.send_signal(signal.SIGCONT)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out, "Traceback" in err) == (code, "", False)
    assert [p.name for p in tmp_path.iterdir()] == ["s.npz"]


def test_an_error_crosses_processes_whole() -> None:
    error = pickle.loads(pickle.dumps(SourceError("what", code="npz.x", hint="do")))
    assert isinstance(error, PipelineError)
    assert (str(error), error.code, error.hint) == ("what", "npz.x", "do")


# --- known to be wrong ------------------------------------------------------------------------------------------------


def test_an_interrupt_at_the_moment_the_staging_folder_exists_leaves_nothing(tmp_path: Path) -> None:
    source = write_legacy_npz(tmp_path / "s.npz", legacy_members())

    def interrupt(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename.endswith("/staging.py") and event == "line" and any(tmp_path.glob(".t.zarr.*")):
            raise KeyboardInterrupt
        return interrupt

    sys.settrace(interrupt)
    try:
        assert run_main(npz2zarr.main, source, tmp_path / "t.zarr").returncode == 130
    finally:
        sys.settrace(None)
    assert [p.name for p in tmp_path.iterdir()] == ["s.npz"]


def test_a_value_beyond_float32_is_named_with_its_file_and_frame(tmp_path: Path) -> None:
    (line,) = errors(convert(tmp_path, BEYOND_FLOAT32))
    assert str(tmp_path / "in" / "s.npz") in line
    assert "frame 9" in line


def test_counts_above_32_bits_are_not_told_to_take_an_option_that_is_refused_too(tmp_path: Path) -> None:
    assert "hint" not in convert(tmp_path, ABOVE_32_BITS).stderr


@pytest.mark.parametrize(
    ("toml", "options"),
    [('positions = "metre"', ("--pixel-size-m", "1e-9")), ("pixel_size_m = 1e-9", ("--positions", "metre"))],
)
def test_toml_and_options_may_each_give_half_of_a_declaration(
    tmp_path: Path, toml: str, options: tuple[str, ...]
) -> None:
    source = write_legacy_npz(tmp_path / "s.npz", legacy_members())
    (tmp_path / "s.toml").write_text(toml)
    assert run_main(npz2zarr.main, source, tmp_path / "t.zarr", *options).returncode == 0


def test_a_pixel_size_of_four_hundred_digits_is_refused(tmp_path: Path) -> None:
    source = write_legacy_npz(tmp_path / "s.npz", legacy_members())
    (tmp_path / "s.toml").write_text(f"pixel_size_m = {10**400}")
    assert run_main(npz2zarr.main, source, tmp_path / "t.zarr").returncode == 2


def test_the_current_folder_is_refused_as_a_folder(tmp_path: Path) -> None:
    assert run_main(npz2zarr.main, ".", tmp_path / "t.zarr").returncode == 4

"""What the picture and the report of a reconstruction promise."""

from __future__ import annotations

import base64
import copy
import io
import json
import re
from html import unescape

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib", reason="the extra `train` is not installed")

from matplotlib.backends.backend_agg import FigureCanvasAgg

from pipeline.evaluation.beside import Pair, draw_beside
from pipeline.evaluation.figure import Curve, Reconstruction, draw, draw_losses
from pipeline.evaluation.planes import limits_of, seen_part, thinned
from pipeline.evaluation.report import write_report
from pipeline.evaluation.sheet import save

GREY = (128, 128, 128)
CURVES = (
    Curve(label="TV 0.003", iterations=(1, 2, 3, 4), losses=(3.0, 0.7, 0.5, 0.44), chosen=True),
    Curve(label="quadratic 0.03", iterations=(4,), losses=(0.47,), chosen=False),
)
FACTS = {
    "title": "Reconstruction of a.npz",
    "command": "python -m pipeline.reconstruct a.npz --output run",
    "source": {"name": "a.npz", "sha256": "5e" * 32, "store_sha256": "70" * 32},
    "frames": 1000,
    "frame_shape": [64, 64],
    "frames_invalid": 7,
    "photons_per_frame": 100012.3,
    "loss": "poisson",
    "background": 0.05,
    "prior": {"name": "tv", "lam": 0.003},
    "refine": {
        "what": "probe,positions",
        "modes": 4,
        "asked": "auto",
        "reason": "the stored probe does not explain the frames",
        "evidence": {"nll": 1.9, "floor": 0.42, "counts_per_pixel": 24.4},
    },
    "choice": [
        {"prior": "quadratic 0.03", "nll": 0.47, "iterations": 20},
        {"prior": "tv 0.003", "nll": 0.44, "iterations": 20},
    ],
    "nll_held_out": 0.44,
    "nll_floor": 0.4,
    "nll_flat": 3.1,
    "frames_held_out": 49,
    "r_factor": 0.144,
    "r_factor_floor": 0.141,
    "metrics": {
        "role": "truth",
        "box_px": [[32, 224], [30, 222]],
        "object": {"complex_nrmse": 0.0442, "amplitude_ssim": 0.93},
        "flat": {"complex_nrmse": 0.312, "amplitude_ssim": None},
    },
    "shift_px": {"median": 0.551, "max": 0.948},
    "gain": {"min": 0.937, "max": 1.038},
    "phases": [{"name": "choice", "passes": 40, "cpu_s": 12.3, "wall_s": 12.5, "data_wait_fraction": 0.004}],
    "data_wait_fraction": 0.004,
    "memory_peak_bytes": 512 << 20,
    "environment": {"python": "3", "numpy": "2", "torch": "2", "ptychozarr": "0", "threads": 1, "cpu": "a CPU"},
    "warnings": ["the probe was guessed"],
}


def found(*, shape=(64, 48), n_frames=40, n_modes=1, side=32, **changes):
    rng = np.random.default_rng(0)

    def noise(*size):
        return (1 + 0.2 * rng.normal(size=size)) * np.exp(0.3j * rng.normal(size=size))

    values = {
        "object": noise(*shape).astype(np.complex64),
        "coverage": np.ones(shape, np.float32),
        "origin_px": (-3, 5),
        "probe": noise(n_modes, side, side).astype(np.complex64),
        "positions": rng.uniform(size=(n_frames, 2)) * shape + (-3, 5),
        "position_shift": rng.normal(size=(n_frames, 2)),
        "gain": 1 + 0.01 * rng.normal(size=n_frames),
        "frame_loss": rng.uniform(0.4, 0.5, n_frames),
        "loss_name": "Poisson NLL",
        "convergence": CURVES,
        "floor": 0.42,
        "reference": noise(*shape).astype(np.complex64),
        "reference_role": "truth",
    }
    return Reconstruction(**(values | changes))


def pixels(sheet):
    """The sheet at 50 dpi, (y, x, 4) uint8, and a function that looks up a point of the grid in a panel."""
    sheet.set_dpi(50)
    canvas = FigureCanvasAgg(sheet)
    canvas.draw()
    rgba = np.asarray(canvas.buffer_rgba())

    def at(panel, y, x):
        column, row = panel.transData.transform((x, y))
        return tuple(int(v) for v in rgba[len(rgba) - 1 - int(row), int(column), :3])

    return rgba, at


def texts(sheet):
    return " | ".join(text.get_text() for text in sheet.texts)


def test_unseen_pixels_are_grey_and_seen_ones_are_not():
    coverage = np.ones((64, 48), np.float32)
    coverage[:, 24:] = 0.05
    coverage[:2, -1] = 1.0  # so that the box of what was seen holds unseen pixels
    sheet = draw(found(coverage=coverage), "half")
    _, at = pixels(sheet)
    amplitude, phase = sheet.axes[0], sheet.axes[2]
    for panel in (amplitude, phase):
        assert at(panel, 40, 5 + 35) == GREY
        assert at(panel, 40, 5 + 12) != GREY


def test_pixels_without_a_number_are_grey():
    obj = np.ones((64, 48), np.complex64)
    obj[20:40, 10:30] = np.nan
    sheet = draw(found(object=obj), "hole")
    _, at = pixels(sheet)
    assert at(sheet.axes[0], -3 + 30, 5 + 20) == GREY
    assert at(sheet.axes[0], -3 + 50, 5 + 20) != GREY


def test_axes_are_coordinates_of_the_grid_with_y_down():
    sheet = draw(found(), "axes")
    assert sheet.axes[0].get_xlim() == (4.5, 52.5)
    assert sheet.axes[0].get_ylim() == (60.5, -3.5)


@pytest.mark.parametrize(("n_modes", "refined"), [(1, False), (2, True), (3, False), (4, True), (5, False), (6, True)])
def test_any_number_of_modes_is_drawn_with_its_shares(n_modes, refined):
    changes = {} if refined else {"position_shift": None, "gain": None, "reference": None, "floor": None}
    sheet = draw(found(n_modes=n_modes, **changes), "modes")
    pixels(sheet)
    shares = [float(share) for share in re.findall(r"\d: ([\d.]+) %", texts(sheet))]
    assert len(shares) == n_modes
    assert sum(shares) == pytest.approx(100, abs=0.1)
    assert ("as stored" in texts(sheet)) is not refined


@pytest.mark.parametrize(
    ("shape", "n_frames", "side"),
    [((60, 60), 1, 32), ((60, 1000), 300, 256), ((1000, 1), 2, 32), ((1600, 1501), 100_000, 64)],
)
def test_any_size_is_drawn(shape, n_frames, side):
    rgba, _ = pixels(draw(found(shape=shape, n_frames=n_frames, side=side), "sizes"))
    assert rgba.shape[1] == 600


NOTHING = np.complex64(np.nan + 1j * np.nan)


@pytest.mark.parametrize(
    "changes",
    [
        {
            "object": np.ones((64, 48), np.complex64),
            "reference": np.ones((64, 48), np.complex64),
            "frame_loss": np.zeros(40),
            "gain": np.ones(40),
            "convergence": (Curve(label="TV", iterations=(1, 2), losses=(0.0, 0.0), chosen=True),),
            "floor": 0.0,
        },
        {
            "object": np.zeros((64, 48), np.complex64),
            "reference": np.zeros((64, 48), np.complex64),
            "probe": np.zeros((2, 32, 32), np.complex64),
            "positions": np.full((40, 2), 7.0),
            "position_shift": np.zeros((40, 2)),
            "convergence": (),
            "floor": None,
        },
        {
            "object": np.full((64, 48), NOTHING),
            "reference": np.full((64, 48), NOTHING),
            "probe": np.full((2, 32, 32), NOTHING),
            "convergence": (Curve(label="TV", iterations=(1, 2), losses=(np.nan, np.nan), chosen=True),),
            "floor": None,
        },
        {"coverage": np.zeros((64, 48), np.float32), "positions": np.full((40, 2), np.nan)},
        {
            "coverage": np.full((64, 48), np.nan, np.float32),
            "position_shift": np.full((40, 2), np.nan),
            "gain": np.full(40, np.nan),
            "frame_loss": np.full(40, np.nan),
        },
        {
            "object": np.full((64, 48), np.inf, np.complex64),
            "convergence": (Curve(label="TV", iterations=(1, 2), losses=(9e3, 8e3), chosen=True),),
        },
    ],
)
def test_whatever_is_constant_masked_or_no_number_is_drawn(changes):
    pixels(draw(found(**changes), "edge"))


def test_a_title_of_any_script_and_length_stays_on_the_sheet():
    for title in ("実験 $x_1$ \n _a", "LONG " * 60):
        sheet = draw(found(), title)
        assert sheet.texts[0].get_window_extent().x1 < sheet.bbox.x1


def test_no_text_of_the_sheet_touches_another():
    sheet = draw(found(n_modes=6), "A title")
    boxes = [text.get_window_extent() for text in sheet.texts]
    touching = [(i, j) for i, a in enumerate(boxes) for j, b in enumerate(boxes) if i < j and a.overlaps(b)]
    assert touching == []


def pair(**changes):
    r = found(shape=(64, 48))
    values = {
        "solver": r.object, "network": (0.9 * r.object + 0.1 * r.reference), "coverage": r.coverage,
        "origin_px": r.origin_px, "reference": r.reference, "reference_role": "truth",
    }  # fmt: skip
    return Pair(**(values | changes))


def beside(**changes):
    return draw_beside(pair(**changes), title="A title", subtitle="what was judged")


def maps(sheet):
    return [ax for ax in sheet.axes if ax.images and ax.get_xlabel()]


def test_solver_and_network_share_the_scale_of_each_row():
    panels = maps(beside())
    assert len(panels) == 9
    for first in (0, 3):
        assert len({panel.images[0].get_clim() for panel in panels[first : first + 3]}) == 1
    solver, network, change = (panel.images[0] for panel in panels[6:])
    assert solver.get_clim() == network.get_clim() != change.get_clim()
    assert np.nanmean(np.asarray(network.get_array())) < np.nanmean(np.asarray(solver.get_array()))


def test_errors_are_what_one_complex_factor_leaves():
    r = found(shape=(64, 48))
    panels = maps(beside(solver=2j * r.reference, network=r.reference + np.float32(0.1)))
    assert np.abs(np.asarray(panels[6].images[0].get_array())).max() < 1e-5
    errors = np.asarray(panels[7].images[0].get_array())
    assert 0.02 < np.sqrt(np.mean(errors**2)) < 0.1


@pytest.mark.parametrize("reference", [None, np.full((64, 48), np.nan + 0j, np.complex64)])
def test_without_a_stored_object_the_two_stand_beside_their_difference(reference):
    sheet = beside(reference=reference, reference_role="none")
    assert len(maps(sheet)) == 5
    assert "Network minus solver, modulus" in texts(sheet)
    assert "none" not in texts(sheet)


@pytest.mark.parametrize(
    "changes",
    [
        {"network": np.full((64, 48), np.nan + 0j, np.complex64)},
        {"solver": np.zeros((64, 48), np.complex64), "network": np.zeros((64, 48), np.complex64)},
        {"coverage": np.zeros((64, 48), np.float32)},
    ],
)
def test_whatever_two_objects_are_they_are_drawn(changes):
    pixels(beside(**changes))


def test_no_text_beside_another_touches_it():
    sheet = beside()
    boxes = [text.get_window_extent() for text in sheet.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])


@pytest.mark.parametrize("n", [0, 1, 40, 3000])
def test_a_loss_curve_of_any_length_and_title_is_drawn(n):
    pixels(draw_losses(list(np.linspace(1, 0.5, n)), "a $x_ curve"))


def test_a_phase_that_goes_round_gets_a_scale_without_a_seam():
    ramp = np.exp(1j * np.linspace(0, 20, 64))[:, None] * np.ones((64, 48))
    sheet = draw(found(object=ramp.astype(np.complex64)), "ramp")
    image = sheet.axes[2].images[0]
    assert image.get_clim() == (-np.pi, np.pi)
    assert np.allclose(image.cmap(0.0), image.cmap(1.0), atol=0.02)


def test_the_same_reconstruction_gives_the_same_bytes(tmp_path):
    for name in ("one.png", "two.png"):
        save(draw(found(), "twice"), tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.width == 2400


def test_planes_have_a_mean_phase_of_zero_and_the_reference_in_their_gauge():
    obj = found().object * np.complex64(0.3 * np.exp(2.5j))
    planes = seen_part(obj, np.ones(obj.shape, np.float32), origin_px=(0, 0), reference=(5j * obj))
    assert np.angle(planes.object.sum()) == pytest.approx(0, abs=1e-5)
    assert np.allclose(planes.reference, planes.object, atol=1e-5)


def test_large_planes_are_block_means_that_cover_the_grid():
    obj = np.ones((3001, 40), np.complex64)
    obj[::3] = 4
    planes = seen_part(obj, np.ones(obj.shape, np.float32), origin_px=(10, 20), reference=None)
    assert planes.object.shape == (1001, 14)
    assert np.allclose(planes.object[:1000, :13], 2)
    assert planes.extent == (19.5, 61.5, 3012.5, 9.5)


def test_limits_are_two_different_numbers():
    for values in (np.zeros(4), np.full(4, -7.0), np.full(4, np.nan), np.zeros(0), np.arange(4.0)):
        low, high = limits_of(values)
        assert low < high


def test_thinning_leaves_at_most_that_many():
    for n in (0, 1, 10, 11, 19, 20, 21, 1000):
        left = thinned(np.arange(n), 10)
        assert len(left) == n if n <= 10 else 5 <= len(left) <= 10


def report(folder, facts=FACTS):
    picture = folder / "report.png"
    Image.new("RGB", (4, 4)).save(picture)
    write_report(folder, facts, {"At a glance": picture})
    return (folder / "report.html").read_text(encoding="utf-8")


def words(page):
    """What a reader sees, without the folded facts."""
    return unescape(re.sub(r"<[^>]*>", " ", page.split("<details>")[0].split("</style>")[1]))


def test_the_facts_come_back_from_report_json(tmp_path):
    report(tmp_path)
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    assert json.loads(text) == FACTS
    assert text == json.dumps(FACTS, indent=2, sort_keys=True) + "\n"


def test_the_same_facts_give_the_same_page(tmp_path):
    assert report(tmp_path) == report(tmp_path)


def test_the_page_says_what_was_found(tmp_path):
    seen = words(report(tmp_path))
    for fact in (
        "1,000 frames of 64 × 64 pixels",
        "0.44, 10 % above the 0.4 of photon noise alone",
        "the stored probe does not explain the frames",
        "4.52 times the 0.42",
        "complex error is 0.0442",
        "0.312",
        "the probe was guessed",
        "python -m pipeline.reconstruct a.npz --output run",
        "5e" * 32,
        "70" * 32,
        "512 MiB",
        "0.4 %",
        "12.3",
    ):
        assert fact in seen


def test_the_candidate_with_the_least_loss_stands_out(tmp_path):
    (row,) = re.findall(r"<tr class=strong>(.*?least.*?)</tr>", report(tmp_path))
    assert "tv 0.003" in row


METRICS = {"role": "truth", "box_px": [[32, 224], [30, 222]], "flat": {"complex_nrmse": 0.312}}
WITH_NETWORK = FACTS | {
    "metrics": METRICS | {"object": {"complex_nrmse": 0.0115}},
    "metrics_solver": METRICS | {"object": {"complex_nrmse": 0.0161}},
    "bundle_sha256": "bb" * 32,
}
FIT = {"model": "canvas", "steps": 1000, "batch_size": 192, "order_sha256": "0d" * 32, "loss_first": 0.6,
       "loss_last": 0.5}  # fmt: skip


def test_the_page_of_a_training_leads_from_the_file_to_the_bundle(tmp_path):
    seen = words(report(tmp_path, WITH_NETWORK | {"fit": FIT}))
    at = [seen.index(digest * 32) for digest in ("5e", "70", "bb")]
    assert at == sorted(at)
    for fact in ("1,000 steps", "0d" * 32, "0.0115 with the network, 0.0161 with the solver alone", "passes or steps"):
        assert fact in seen
    assert "This reconstruction" not in seen


def test_the_page_of_a_network_at_work_tells_what_it_was_trained_on(tmp_path):
    used = {"store_sha256": "17" * 32, "source": {"name": "b.npz", "sha256": "66" * 32}}
    seen = words(report(tmp_path, WITH_NETWORK | {"bundle": used, "nll_network": 0.42}))
    for fact in ("trained on b.npz", "17" * 32, "66" * 32, "bb" * 32, "With the network of the bundle it is 0.42"):
        assert fact in seen


@pytest.mark.parametrize("key", ["fit", "bundle", "bundle_sha256", "metrics_solver", "nll_network"])
def test_null_facts_about_a_network_show_as_unknown_or_not_at_all(tmp_path, key):
    facts = WITH_NETWORK | {"fit": FIT, "nll_network": 0.42, "bundle": {"store_sha256": None, "source": None}}
    for value in (None, {} if key in ("fit", "bundle", "metrics_solver") else None):
        assert "None" not in words(report(tmp_path, facts | {key: value}))


@pytest.mark.parametrize("key", FACTS)
def test_a_null_fact_shows_as_unknown_or_not_at_all(tmp_path, key):
    seen = words(report(tmp_path, FACTS | {key: None}))
    assert "None" not in seen
    assert "null" not in seen
    if key not in ("metrics", "shift_px", "gain", "choice", "phases", "warnings", "environment"):
        assert "unknown" in seen


@pytest.mark.parametrize("key", [key for key, value in FACTS.items() if isinstance(value, dict)])
def test_null_facts_inside_a_fact_show_as_unknown(tmp_path, key):
    seen = words(report(tmp_path, FACTS | {key: dict.fromkeys(FACTS[key])}))
    assert "None" not in seen
    assert "unknown" in seen


@pytest.mark.parametrize("key", ["choice", "phases"])
def test_null_facts_inside_a_list_show_as_unknown(tmp_path, key):
    seen = words(report(tmp_path, FACTS | {key: [dict.fromkeys(item) for item in FACTS[key]]}))
    assert "None" not in seen
    assert "unknown" in seen


def paths(value, at=()):
    """Every key of the facts with the keys that lead to it."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if isinstance(value, dict) and at[-1:] not in (("object",), ("flat",)):
        for key, item in value.items():
            if isinstance(key, str):
                yield (*at, key)
            yield from paths(item, (*at, key))


@pytest.mark.parametrize("path", list(paths(FACTS)))
def test_a_missing_fact_is_refused_by_name_and_nothing_is_written(tmp_path, path):
    facts = copy.deepcopy(FACTS)
    part = facts
    for key in path[:-1]:
        part = part[key]
    del part[path[-1]]
    with pytest.raises(KeyError, match=path[-1]):
        report(tmp_path, facts)
    assert not list(tmp_path.glob("report.[hj]*"))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_fact_that_is_no_number_is_refused_and_nothing_is_written(tmp_path, number):
    with pytest.raises(ValueError, match="JSON"):
        report(tmp_path, FACTS | {"r_factor": number})
    assert not list(tmp_path.glob("report.[hj]*"))


def test_text_of_the_facts_cannot_become_markup(tmp_path):
    evil = "<script>alert('1')</script>\"&"

    def spoiled(value):
        if isinstance(value, str):
            return evil
        if isinstance(value, dict):
            return {key: spoiled(item) for key, item in value.items()}
        return [spoiled(item) for item in value] if isinstance(value, list) else value

    page = report(tmp_path, spoiled(FACTS))
    assert "<script" not in page
    assert words(page).count(evil) >= 10


def test_a_caption_cannot_become_markup(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    write_report(tmp_path, FACTS, {'"><script>': tmp_path / "a.png"})
    assert "<script" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_page_asks_for_nothing_outside_itself(tmp_path):
    page = report(tmp_path)
    assert all(link.startswith("data:image/png;base64,") for link in re.findall(r'(?:src|href)="?([^"> ]*)', page))
    assert not re.search(r"https?:|url\(|@import|<script|<link|<iframe", page)
    assert "default-src 'none'" in page


def test_the_page_holds_the_picture(tmp_path):
    page = report(tmp_path)
    assert 'alt="At a glance"' in page
    (data,) = re.findall(r"data:image/png;base64,([^\"]*)", page)
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (4, 4)


def test_every_element_of_the_page_is_closed(tmp_path):
    page = re.sub(r"<!DOCTYPE html>|<(meta|img|br)\b[^>]*>", "", report(tmp_path))
    opened = []
    for slash, name in re.findall(r"<(/?)([a-z0-9]+)", page):
        if slash:
            assert opened.pop() == name
        else:
            opened.append(name)
    assert opened == []

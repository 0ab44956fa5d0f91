"""What a refinement promises: nothing of frames held out from it, and no move without a reason."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from pipeline.config import RefineConfig, SolverConfig  # noqa: E402  # behind the check that torch is there
from pipeline.physics.prior import Prior  # noqa: E402
from pipeline.physics.refine import RefineState, _moves, refine, start_refinement, with_probe  # noqa: E402
from pipeline.physics.solver import prepare, survey_scan  # noqa: E402
from tests.physics_scans import Scan, make_scan, passes_of  # noqa: E402

PRIOR = Prior(name="tv", weight=0.01)
SOLVER = SolverConfig(loss="poisson-background", background=0.1, support_energy=1.0)
CONFIG = RefineConfig(what="probe,positions", iterations=12, start_passes=1)


def displaced(seed: int = 3) -> Scan:
    scan = make_scan(noise=True, n_frames=120)
    return replace(scan, positions=scan.positions + np.random.default_rng(seed).normal(0, 0.4, scan.positions.shape))


def refined(scan: Scan, *, use: np.ndarray | None = None, config: RefineConfig = CONFIG) -> RefineState:
    """The last state; optics always from all frames of the untouched scan."""
    probe = torch.from_numpy(scan.probe)
    optics = prepare(survey_scan(passes_of(displaced()), probe), probe, config=SOLVER, geometry=scan.geometry)
    optics = with_probe(optics, optics.probe)
    start = start_refinement(optics, n_frames=len(scan.positions))
    *_, last = refine(
        passes_of(scan), optics, prior=PRIOR, solver=SOLVER, config=config, start=start, use=use
    )  # fmt: skip
    return last


def test_frames_held_out_have_no_influence_on_the_others() -> None:
    scan, use = displaced(), np.arange(120) % 7 != 0
    intensity = scan.intensity.copy()
    intensity[~use] = 9 * intensity[~use][:, ::-1]
    clean, spoiled = refined(scan, use=use), refined(replace(scan, intensity=intensity), use=use)
    for name in ("canvas", "probe", "den"):
        assert torch.equal(getattr(clean, name), getattr(spoiled, name)), name
    counting = torch.from_numpy(use)
    assert torch.equal(clean.gain[counting], spoiled.gain[counting])
    assert torch.equal(clean.shift[counting], spoiled.shift[counting])
    assert not torch.equal(clean.shift[~counting], spoiled.shift[~counting])  # found for these all the same


def test_gains_have_mean_one_and_shifts_none_over_the_frames_that_count() -> None:
    use = np.arange(120) % 7 != 0
    state, counting = refined(displaced(), use=use), torch.from_numpy(use)
    assert float(state.gain[counting].mean()) == pytest.approx(1, abs=1e-12)
    assert float(state.shift[counting].mean(0).abs().max()) < 1e-3
    assert float(state.shift.abs().max()) > 0.1


def test_no_frame_moves_further_than_allowed() -> None:
    far = replace(CONFIG, max_shift_px=0.2)
    assert float(refined(displaced(), config=far).shift.abs().max()) == 0.2


def lens_of(scan: Scan):
    probe = torch.from_numpy(scan.probe)
    optics = prepare(survey_scan(passes_of(scan), probe), probe, config=SOLVER, geometry=scan.geometry)
    return with_probe(optics, optics.probe)


@pytest.mark.parametrize("dose", [1e-6, 1.0, 1e6])
def test_moves_do_not_depend_on_the_dose_and_a_flat_object_asks_for_none(dose: float) -> None:
    lens = lens_of(make_scan(noise=False, n_frames=20))
    rng = np.random.default_rng(1)
    patches = torch.from_numpy(rng.normal(size=(3, 32, 32)) + 1j * rng.normal(size=(3, 32, 32))).to(torch.complex64)
    patches[2] = 0.7 + 1e-7 * patches[2]  # flat but for rounding
    asked = torch.from_numpy(rng.normal(size=(3, 32, 32))).to(torch.complex64) * lens.probe[0].abs().square()
    gain = torch.ones(3, dtype=torch.float64)
    brighter = with_probe(lens, lens.probe * dose**0.5)
    found, moves = _moves(asked, patches, lens, gain), _moves(asked * dose, patches, brighter, gain)
    assert moves.numpy() == pytest.approx(found.numpy(), rel=1e-4)
    assert float(moves[2].abs().max()) < 0.05 < float(moves[:2].abs().max())

"""Hypothesis profiles, `quick` for every run, `long` (HYPOTHESIS_PROFILE=long, `make test-all`) for proofs; torch."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

_SLOW_BUT_MEANT = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("quick", max_examples=30, deadline=None, suppress_health_check=_SLOW_BUT_MEANT)
settings.register_profile("long", max_examples=400, deadline=None, suppress_health_check=_SLOW_BUT_MEANT)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # tests in the background; the programs they start want Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def torch_as_before() -> Iterator[None]:
    """One thread, as small tensors and busy cores want it; and switches that a command throws are thrown back."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(strict)

"""Hypothesis profiles: `quick` for every run, `long` (HYPOTHESIS_PROFILE=long, `make test-all`) for proofs."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_SLOW_BUT_MEANT = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("quick", max_examples=30, deadline=None, suppress_health_check=_SLOW_BUT_MEANT)
settings.register_profile("long", max_examples=400, deadline=None, suppress_health_check=_SLOW_BUT_MEANT)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

"""What every test runs under."""

from __future__ import annotations

import os

# Networks of the tests are so small that threads only wait for each other, worse so beside other work.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import HealthCheck, settings

# How long an example takes says something of the machine, nothing of the code.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")

"""Waiting for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

LIMIT_S = 60.0


def wait_for(is_so: Callable[[], object], what: str, limit_s: float = LIMIT_S) -> None:
    """Waits until something is so; the test fails if it does not come about."""
    deadline = time.monotonic() + limit_s
    while not is_so():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {limit_s} s for {what}")
        time.sleep(0.02)

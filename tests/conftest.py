"""What every test runs under."""

from __future__ import annotations

import os
from typing import Any

# Networks of the tests are so small that threads only wait for each other, worse so beside other work.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

from tests.preloaded import serve_others

# How long an example takes says something of the machine, nothing of the code.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")

# Those of a group share a PACS, servers or a browser that take long to start: one process runs them all, and they begin.
SHARING = {
    "e2e": ("tests/e2e/",),
    "page": ("tests/page/",),
    "host": tuple(
        f"tests/host/test_{name}.py"
        for name in (
            *("bad_requests", "batch", "concurrency", "dicom_folder", "infer", "methods", "models", "next_and_score", "security"),
            *("slicer_client", "tags_rest", "tags_viewers"),
        )
    ),
}


def pytest_configure(config: pytest.Config) -> None:
    """The process that spreads tests over others starts their programs."""
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        serve_others()


def sharing(nodeid: str) -> str | None:
    """The group that a test shares in, if any."""
    return next((group for group, places in SHARING.items() if nodeid.startswith(places)), None)


class GroupScheduling(LoadFileScheduling):
    """Tests of a file run in one process, those of a group that shares in one too."""

    def _split_scope(self, nodeid: str) -> str:
        return sharing(nodeid) or nodeid.split("::", 1)[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> GroupScheduling:
    """Used instead of what `--dist` names."""
    return GroupScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins."""
    order = [*SHARING, None]
    items.sort(key=lambda item: order.index(sharing(item.nodeid)))

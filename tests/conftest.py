"""What every test runs under."""

from __future__ import annotations

import os
from typing import Any

# Networks of the tests are so small that threads only wait for each other, worse so beside other work.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

# How long an example takes says something of the machine, nothing of the code.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")

# These share a PACS, servers and a browser that take long to start: one process runs all of a folder, and they begin.
SHARING = ("tests/e2e/", "tests/page/")


class FolderScheduling(LoadFileScheduling):
    """Tests of a file run in one process, those of a folder that shares in one too."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return next((folder for folder in SHARING if file.startswith(folder)), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FolderScheduling:
    """Used instead of what `--dist` names."""
    return FolderScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins."""
    items.sort(key=lambda item: not item.nodeid.startswith(SHARING))

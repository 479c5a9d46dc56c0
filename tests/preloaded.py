"""Programs of this project as processes whose third-party modules are loaded already: that takes ten seconds of a start, the rest one.

A process that has imported them forks for each program, which then runs as `python -m` runs it: its own modules and settings, arguments,
environment, working folder and log.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path

# What a server imports, but for the host and what is ours: these read settings from the environment when they are imported.
THIRD_PARTY = (
    "diffusers.models.unets.unet_2d", "fastapi", "girder_client", "google.auth", "highdicom", "matplotlib.pyplot",
    "monai.apps", "monai.bundle", "monai.data", "monai.metrics", "monai.networks.nets", "monai.transforms", "nibabel",
    "pydicom_seg", "requests_toolbelt", "scipy.signal", "skimage.measure", "SimpleITK", "torch._dynamo",
    "torch.utils.tensorboard", "uvicorn.protocols.http.h11_impl", "watchdog.observers",
)  # fmt: skip


class Preloaded:
    """A running program, with the methods of `subprocess.Popen` that tests use.

    Args:
        module: what `python -m` would be told.
        arguments: of the program.
        folder: where it works.
        environment: its environment.
        log: receives what it prints; appended to.
    """

    def __init__(self, module: str, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path) -> None:
        self._process = _context().Process(target=_run, args=(module, tuple(arguments), folder, dict(environment), log))
        self._process.start()
        atexit.register(self.kill)
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, or minus the signal that ended it."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Exit code if it has ended."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end.

        Raises:
            subprocess.TimeoutExpired: it has not ended within `timeout` seconds.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired([self._process.name], timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Sends a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it outright."""
        self.send_signal(signal.SIGKILL)


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(THIRD_PARTY))
    return context


def _run(module: str, arguments: tuple[str, ...], folder: Path, environment: dict[str, str], log: Path) -> None:
    with log.open("ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # it may have been looked up
    sys.argv = [module, *arguments]
    sys.path[0] = str(folder)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()

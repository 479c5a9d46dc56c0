"""Programs of this project as processes whose third-party modules are loaded already: that takes ten seconds of a start, the rest one.

A process that has imported them forks for each program, which then runs as `python -m` runs it: its own modules and settings, arguments,
environment, working folder and log. Where pytest-xdist spreads tests over processes, one such process serves them all.
"""

from __future__ import annotations

import atexit
import math
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.managers import BaseManager
from pathlib import Path

# What a server imports, but for the host and what is ours: these read settings from the environment when they are imported.
THIRD_PARTY = (
    "diffusers.models.unets.unet_2d", "fastapi", "girder_client", "google.auth", "highdicom", "matplotlib.pyplot",
    "monai.apps", "monai.bundle", "monai.data", "monai.metrics", "monai.networks.nets", "monai.transforms", "nibabel",
    "pydicom_seg", "requests_toolbelt", "scipy.signal", "skimage.measure", "SimpleITK", "tests.itk_loaded", "torch._dynamo",
    "torch.utils.tensorboard", "uvicorn.protocols.http.h11_impl", "watchdog.observers",
)  # fmt: skip
# Where the process is found that starts programs for the others; a socket of this machine.
STARTER, KEY = "APP_CDM_TEST_STARTER", b"tests"
LOCK = threading.Lock()  # an exit code can be read once: starting a process reads those of all that have ended
PAUSE_S = 0.02


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
        self._program = _start(module, tuple(arguments), folder, dict(environment), log)
        self._name = module
        atexit.register(self.kill)
        self.pid: int = self._program.pid()

    @property
    def returncode(self) -> int | None:
        """Exit code, or minus the signal that ended it."""
        return self._program.code()

    def poll(self) -> int | None:
        """Exit code if it has ended."""
        return self._program.code()

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end.

        Raises:
            subprocess.TimeoutExpired: it has not ended within `timeout` seconds.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired([self._name], timeout or 0)
            time.sleep(PAUSE_S)
        return code

    def send_signal(self, number: int) -> None:
        """Sends a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it outright."""
        self.send_signal(signal.SIGKILL)


class _Program:
    """A program, in the process that has started it."""

    def __init__(self, module: str, arguments: tuple[str, ...], folder: Path, environment: dict[str, str], log: Path) -> None:
        self._process = _context().Process(target=_run, args=(module, arguments, folder, environment, log))
        with LOCK:
            self._process.start()
        atexit.register(self._process.kill)

    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def code(self) -> int | None:
        with LOCK:
            return self._process.exitcode


class _Starter(BaseManager):
    """Starts programs for other processes."""


_Starter.register("start", _Program, exposed=("pid", "code"))


def serve_others() -> None:
    """Starts programs for the processes that this one will start, until it ends; at once begins to import what takes long."""
    _context()
    forkserver.ensure_running()
    server = _Starter(authkey=KEY).get_server()
    os.environ[STARTER] = str(server.address)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def _start(module: str, arguments: tuple[str, ...], folder: Path, environment: dict[str, str], log: Path) -> _Program:
    if STARTER not in os.environ:
        return _Program(module, arguments, folder, environment, log)
    starter = _Starter(os.environ[STARTER], authkey=KEY)
    starter.connect()
    program: _Program = starter.start(module, arguments, folder, environment, log)  # type: ignore[attr-defined]
    return program


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

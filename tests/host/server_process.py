"""A label server as its users run it: a process of its own, on a free port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import requests

from tests.preloaded import Preloaded

REPOSITORY = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 300


class Server:
    """A running server.

    Args:
        studies: its studies.
        work: folder for its log and caches.
        arguments: further arguments of `python -m lib.serve`.
        port: where it listens; a free one by default.
        preloaded: start it from a process that holds its third-party modules, or as users do, which takes long.
    """

    process: subprocess.Popen[bytes] | Preloaded

    def __init__(
        self, studies: Path, work: Path, arguments: Sequence[str] = (), port: int | None = None, *, preloaded: bool = True
    ) -> None:
        self.studies = studies
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = work / "server.log"
        self.temporary = work / "tmp"
        self.temporary.mkdir(exist_ok=True)
        arguments = ["--studies", str(studies), "--port", str(self.port), "--cache-dir", str(work / "cache"), "--device", "cpu", *arguments]
        own = {"OMP_NUM_THREADS": "1", "TMPDIR": str(self.temporary), "MONAI_LABEL_SESSION_PATH": str(work / "sessions")}
        environment = {**os.environ, **own}
        if preloaded:
            self.process = Preloaded("lib.serve", arguments, REPOSITORY, environment, self.log)
            return
        with self.log.open("a") as log:
            command = [sys.executable, "-m", "lib.serve", *arguments]
            self.process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def wait(self) -> Server:
        """Waits until it answers."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.log.read_text()[-4000:]}")
            try:
                requests.get(f"{self.url}/info/", timeout=5)
                return self
            except (requests.ConnectionError, requests.Timeout):
                time.sleep(0.2)
        raise AssertionError(f"the server did not answer within {START_TIMEOUT_S} s:\n{self.log.read_text()[-4000:]}")

    def leftovers(self) -> list[str]:
        """Images left among its temporary files; the server removes them just after it has answered."""
        for _ in range(20):
            left = [path.name for path in self.temporary.rglob("*") if path.suffix in (".gz", ".nii", ".nrrd", ".png", ".dcm")]
            if not left:
                break
            time.sleep(0.1)
        return left

    def stop(self) -> int:
        """Stops it as Ctrl-C does, and returns its exit code."""
        self.process.send_signal(2)
        try:
            return self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

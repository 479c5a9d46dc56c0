"""The real label server as a subprocess that never outlives the demo."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

import requests

from demo.parent import die_with_parent

ROOT = Path(__file__).resolve().parent.parent
START_LIMIT_S = 180.0
STOP_LIMIT_S = 10.0


class ServerError(RuntimeError):
    """The label server did not start or stopped by itself; the message holds the end of its log."""


def is_port_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server may listen on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def find_free_port(start: int = 0, host: str = "127.0.0.1") -> int:
    """The first free port from `start` on; 0 lets the system choose one."""
    if start:
        return next(port for port in range(start, 65536) if is_port_free(port, host))
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


class LabelServer:
    """Starts `python -m lib.serve` on 127.0.0.1 and stops it, with its children, on leaving the context.

    Args:
        studies: folder or DICOMweb root to serve.
        port: port to listen on.
        log: file that receives what the server prints.
        cache: folder for converted DICOM series.
        extra: further arguments of `lib.serve`.

    Raises:
        ServerError: the server does not answer within `START_LIMIT_S`.
    """

    def __init__(self, studies: Path | str, port: int, log: Path, cache: Path, extra: tuple[str, ...] = ()) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        self._command = [sys.executable, "-m", "lib.serve", "--studies", str(studies), "--host", "127.0.0.1", "--port", str(port)]
        self._command += ["--cache-dir", str(cache), *extra]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> LabelServer:
        environment = dict(os.environ)
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                start_new_session=True, preexec_fn=die_with_parent,
            )  # fmt: skip
        try:
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    def watch(self) -> None:
        """Blocks until the server ends.

        Raises:
            ServerError: it ended by itself.
        """
        assert self._process is not None
        code = self._process.wait()
        raise ServerError(f"the label server ended with exit code {code}; end of {self._log}:\n{self._tail()}")

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ServerError(f"the label server ended with exit code {self._process.returncode}; end of {self._log}:\n{self._tail()}")
            try:
                if requests.get(f"{self.url}/info/", timeout=10).ok:
                    return
            except requests.RequestException:
                pass
            time.sleep(0.2)
        raise ServerError(f"the label server did not answer within {START_LIMIT_S:.0f} s; end of {self._log}:\n{self._tail()}")

    def _tail(self, lines: int = 15) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def _stop(self) -> None:
        """Asks the server's process group to end, then ends it by force."""
        process, self._process = self._process, None
        if process is None:
            return
        for number, limit_s in ((signal.SIGINT, STOP_LIMIT_S), (signal.SIGKILL, STOP_LIMIT_S)):
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                break
            try:
                process.wait(limit_s)
            except subprocess.TimeoutExpired:
                continue
        process.wait()

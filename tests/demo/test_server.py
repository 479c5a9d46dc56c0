from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from demo import server
from demo.__main__ import main
from demo.server import LabelServer, ServerError, find_free_port, is_port_free


def test_busy_port_is_named_with_a_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not is_port_free(port)
        assert main(["--once", "--port", str(port)]) == 2
    message = capsys.readouterr().err
    assert str(port) in message
    assert "make demo PORT=" in message


def test_server_that_cannot_start_shows_its_log(tmp_path: Path) -> None:
    broken = LabelServer(tmp_path / "absent", find_free_port(), tmp_path / "log", tmp_path / "cache")
    with pytest.raises(ServerError, match="no such folder"), broken:
        pytest.fail("must not start")


def test_server_ends_even_when_the_demo_is_killed(tmp_path: Path) -> None:
    """The kernel ends the server's process (Linux), so no demo leaves one behind."""
    if sys.platform != "linux":
        pytest.skip("parent-death signal is Linux's")
    code = (
        "import subprocess, sys, time; from demo.parent import die_with_parent;"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'],"
        " start_new_session=True, preexec_fn=die_with_parent);"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=server.ROOT, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        time.sleep(0.3)
        parent.send_signal(signal.SIGKILL)
        parent.wait(10)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _is_alive(child):
        time.sleep(0.1)
    assert not _is_alive(child)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False

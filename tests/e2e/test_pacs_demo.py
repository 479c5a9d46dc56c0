"""`python -m demo.pacs` as a user runs it, on one study."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.programs import missing_pacs
from tests.host.server_process import REPOSITORY, free_port


def run(workspace: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "demo.pacs", "--once", "--cases", "1", "--device", "cpu", "--workspace", str(workspace), *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=250, check=False)


@pytest.mark.skipif(bool(missing_pacs()), reason=missing_pacs())
def test_demo_brings_a_right_mask_and_leaves_nothing_running(tmp_path: Path) -> None:
    port = free_port()
    done = run(tmp_path / "work", "--port", str(port))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "listens on 127.0.0.1 only" in done.stdout and "The masks are right." in done.stdout
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path) not in running, "a program outlived the demo"


def test_missing_programs_are_named_with_the_line_that_installs_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("demo.orthanc.PROGRAMS", ())
    monkeypatch.setattr("demo.orthanc.PLUGINS", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    assert missing_pacs() == (
        "Debian package orthanc and orthanc-dicomweb not found; install with: sudo apt-get install orthanc orthanc-dicomweb"
    )

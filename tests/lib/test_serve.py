"""Wrong options of the server are told at once, not after all that a server imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (["--studies", "absent"], "no such folder"),
        (["--studies", ".", "--device", "tpu"], "device"),
        (["--studies", ".", "--host", ""], "--host"),
        (["--studies", ".", "--allow-origin", "*"], "allow_origins"),
        (["--studies", ".", "--allow-origin", "null"], "allow_origins"),
        (["--studies", ".", "--classes", "a/b"], "classes"),
        (["--studies", "http://reader:secret@127.0.0.1:8042/dicom-web"], "no name and password in the URL"),
    ],
)
def test_wrong_options_are_told_before_the_host_is_imported(wrong: list[str], reason: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "lib.serve", *wrong]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert ended.returncode == 2
    lines = ended.stderr.splitlines()
    assert any(reason in line for line in lines if not line.startswith("import time:")), ended.stderr[-500:]
    imported = {line.rsplit("|", 1)[-1].strip() for line in lines if line.startswith("import time:")}
    assert "lib.options" in imported
    assert not imported & {"torch", "monai", "monailabel", "diffusers"}

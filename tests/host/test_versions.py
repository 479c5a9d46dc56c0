"""Versions over HTTP: what is served changes at once, and a request finishes on the version that it began with."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from app_cdm.pipeline import CDMPipeline
from lib.versions import ORIGINAL, ModelVersions
from tests.host.answers import ask_mask, assert_refused
from tests.host.server_process import Server
from tests.host.studies import head, write_nifti
from tests.host.tiny_model import save_tiny_model

SLOW = {"num_draws": 8, "noise_levels": "0.3, 0.4, 0.5, 0.6, 0.7, 0.8"}

# diffusers leaves closing the weights to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "studies").mkdir()
    write_nifti(tmp_path / "studies" / "case0.nii.gz", head(0))
    save_tiny_model(tmp_path / "models" / "tiny")
    server = Server(tmp_path / "studies", tmp_path, ["--model-dir", str(tmp_path / "models")])
    try:
        yield server.wait()
    finally:
        server.stop()


def test_a_version_is_served_at_once_and_rolled_back_while_requests_finish_on_theirs(served: Server, tmp_path: Path) -> None:
    def reply(params: dict[str, Any] | None = None) -> str:
        found: str = ask_mask(served.url, "case0", params)[1]["model_version"]
        return found

    def versions() -> dict[str, Any]:
        found: dict[str, Any] = requests.get(f"{served.url}/versions/", timeout=30).json()
        return found

    versions_of = ModelVersions(tmp_path / "models", "tiny")
    candidate = CDMPipeline.from_pretrained(save_tiny_model(tmp_path / "candidate", seed=1))
    record = {"tag_set_sha256": "0" * 64, "held_out": {"mean": 0.9}, "parent": {"model_version": "of another"}}
    candidate.with_networks(training=record).save_pretrained(tmp_path / "candidate")
    first, second = reply(), candidate.model_version
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(reply, SLOW)
        time.sleep(0.5)
        name = versions_of.publish(tmp_path / "candidate", second)
        assert not running.done(), "the inference was too short to prove anything"
        assert reply() == second
        assert running.result() == first
        assert versions()["current"] == name
        running = pool.submit(reply, SLOW)
        time.sleep(0.5)
        back = requests.post(f"{served.url}/versions/rollback", timeout=30)
        assert not running.done()
        assert back.json() == {"model": "tiny", "current": ORIGINAL}
        assert reply() == first
        assert running.result() == second
    assert_refused(requests.post(f"{served.url}/versions/rollback", timeout=30), 404, "no version before 'original'")
    forward = requests.post(f"{served.url}/versions/rollback", params={"version": name}, timeout=30)
    assert forward.json()["current"] == name
    assert reply() == second
    listed = versions()["versions"]
    assert [(entry["version"], entry["is_current"]) for entry in listed] == [(ORIGINAL, False), (name, True)]
    assert listed[1]["tag_set_sha256"] == "0" * 64
    assert listed[1]["held_out"] == {"mean": 0.9}
    assert listed[1]["parent"] == "of another"

"""Next Sample by doubt, and scoring without a process, over HTTP."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests

from app_cdm.data.volume import Volume, read_volume, write_mask
from app_cdm.pipeline import CDMPipeline
from lib.activelearning.doubt import find_doubts
from tests.host.answers import ask_mask, assert_refused
from tests.host.server_process import Server
from tests.host.studies import AFFINE, SHAPE, head, write_nifti

NEW = tuple(f"new{number}" for number in range(4))
LONG = {"num_draws": 4, "noise_levels": "0.3, 0.4, 0.5, 0.6, 0.7, 0.8"}
SCORE = "/scoring/weak_label"


@pytest.fixture(autouse=True, scope="module")
def nothing_is_tagged(server: Server) -> None:
    """Takes back what tests of other files have tagged and submitted."""
    for row in csv.DictReader(requests.get(f"{server.url}/tags/export", timeout=30).text.splitlines()):
        place = {"params": {"class": row["class"]}, "json": {"value": None}, "timeout": 30}
        requests.put(f"{server.url}/tags/{row['image']}", **place).raise_for_status()  # type: ignore[arg-type]
    images = requests.get(f"{server.url}/datastore/", params={"output": "all"}, timeout=30).json()["objects"]
    for image in (image for image, found in images.items() if "final" in found["labels"]):
        requests.delete(f"{server.url}/datastore/label", params={"id": image, "tag": "final"}, timeout=30).raise_for_status()


@pytest.fixture
def new_images(server: Server, tmp_path: Path) -> Iterator[dict[str, Path]]:
    """Images that were never offered."""
    files = {name: write_nifti(tmp_path / f"{name}.nii.gz", head(seed)) for seed, name in enumerate(NEW, start=20)}
    for name, path in files.items():
        with path.open("rb") as content:
            requests.put(f"{server.url}/datastore/image", params={"image": name}, files={"file": content}, timeout=30).raise_for_status()
    yield files
    requests.delete(f"{server.url}/datastore/label", params={"id": NEW[0], "tag": "final"}, timeout=30)
    for name in files:
        requests.delete(f"{server.url}/datastore/image", params={"id": name}, timeout=30).raise_for_status()


@pytest.fixture
def tagged(server: Server, new_images: dict[str, Path]) -> dict[str, Path]:
    """The new images with tags; removing them forgets these."""
    tags = {name: {"edema": [[1, 2]], "tumor": [[0, 3]]} for name in NEW}
    requests.post(f"{server.url}/tags/bulk", json={"tags": tags, "user": "ann"}, timeout=30).raise_for_status()
    return new_images


def strict(text: str) -> Any:
    """JSON without NaN and infinities."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in {text[:500]}")

    return json.loads(text, parse_constant=refuse)


def scored(server: Server) -> set[str]:
    """Images whose doubts the server has on its disk."""
    lines = [line for path in server.log.parent.glob("cache/doubts/*/*.jsonl") for line in path.read_text().splitlines()]
    return {json.loads(line)[0] for line in lines}


def wait_until_scored(server: Server, names: set[str]) -> None:
    deadline = time.monotonic() + 60
    while not names <= scored(server):
        assert time.monotonic() < deadline, f"{scored(server)}\n{server.log.read_text()[-3000:]}"
        time.sleep(0.1)


def wait_for_score(url: str, timeout_s: float = 60) -> dict[str, Any]:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        task: dict[str, Any] = strict(requests.get(f"{url}/scoring/", timeout=10).text)
        if task["status"] != "RUNNING":
            return task
        time.sleep(0.1)
    raise AssertionError(f"scoring still runs after {timeout_s} s: {task}")


def test_next_sample_offers_the_most_doubtful_image_first(
    server: Server, series_uid: str, model_dir: Path, new_images: dict[str, Path]
) -> None:
    def click(strategy: str = "uncertain") -> str:
        return str(requests.post(f"{server.url}/activelearning/{strategy}", json={}, timeout=30).json()["id"])

    wait_until_scored(server, {"case0", series_uid})  # the reader of DICOM series takes its time to load, once
    first = click()  # answers before the new images are scored, and makes the server look for them
    wait_until_scored(server, set(NEW))
    pipeline = CDMPipeline.from_pretrained(model_dir / "tiny")
    doubts = {name: max(find_doubts(pipeline, pipeline.classifier, read_volume(path)).values()) for name, path in new_images.items()}
    expected = sorted(set(NEW) - {first}, key=lambda name: -doubts[name])
    offered: list[str] = []
    while not set(expected) <= set(offered):
        offered.append(click("random" if len(offered) % 2 else "uncertain"))
        assert len(offered) == len(set(offered)) and first not in offered, "nobody gets a case again before the others were offered"
    assert [name for name in offered if name in expected] == expected
    assert "DoubtScorer" not in server.log.read_text() and psutil.Process(server.process.pid).children() == []


def test_next_sample_does_not_score_and_too_few_tags_are_explained(server: Server) -> None:
    requests.post(f"{server.url}/activelearning/uncertain", json={}, timeout=30).raise_for_status()
    assert requests.get(f"{server.url}/scoring/", timeout=30).status_code == 404
    assert set(requests.get(f"{server.url}/info/", timeout=30).json()["scoring"]) == {"weak_label"}
    for route in (SCORE, "/scoring/"):
        assert_refused(requests.post(f"{server.url}{route}", timeout=30), 409, "patient(s)", "class 'tumor'")
    assert requests.get(f"{server.url}/scoring/", timeout=30).status_code == 404
    assert requests.delete(f"{server.url}/scoring/", timeout=30).json() is None


def test_scoring_without_a_model_is_refused(tag_server: Server) -> None:
    if not requests.get(f"{tag_server.url}/info/", timeout=30).json()["models"]:
        assert_refused(requests.post(f"{tag_server.url}{SCORE}", timeout=30), 404, "no weights")


def test_scoring_runs_once_in_the_server_and_reports_auc_and_dice(server: Server, tagged: dict[str, Path], tmp_path: Path) -> None:
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[10:20, 10:30, 1:4], mask[22:30, 10:30, 0:4] = 1, 2
    write_mask(mask, Volume(mask.astype(np.float32), AFFINE), tmp_path / "label.nrrd")
    with (tmp_path / "label.nrrd").open("rb") as content:
        place = {"image": NEW[0], "tag": "final"}
        requests.put(f"{server.url}/datastore/label", params=place, files={"label": content}, timeout=30).raise_for_status()
    ask_mask(server.url, NEW[0])  # warm
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(ask_mask, server.url, NEW[1], LONG, 120)  # holds the network, so that scoring lasts
        time.sleep(0.2)
        started = requests.post(f"{server.url}{SCORE}", json={"note": "evening"}, timeout=30)
        again = requests.post(f"{server.url}{SCORE}", timeout=30)
        children = psutil.Process(server.process.pid).children(recursive=True)
        busy.result()
    assert started.status_code == 200, started.text
    assert started.json()["status"] == "RUNNING" and started.json()["request"] == {"note": "evening", "method": "weak_label"}
    assert_refused(again, 429, "running", "/scoring/")
    assert children == []

    task = wait_for_score(server.url)
    assert task["status"] == "DONE", task
    assert task["id"] == started.json()["id"] and task["end_ts"] >= task["start_ts"]
    result = task["result"]
    scores = result["held_out"]["scores"]
    assert set(scores) == {"mean", "gate/edema", "gate/tumor", "map/edema", "map/tumor"}
    assert all(0 <= value <= 1 for value in scores.values())
    assert 2 <= result["held_out"]["patients"] < len(NEW)
    found, reply = ask_mask(server.url, NEW[0], model="student")
    assert result["model_version"] == reply["model_version"]
    for name, value in (("edema", 1), ("tumor", 2)):
        expected = 2 * np.sum((found == value) & (mask == value)) / (np.sum(found == value) + np.sum(mask == value))
        assert result["final_labels"]["images"][NEW[0]]["dice"][name] == pytest.approx(expected, abs=1e-6)
        assert result["final_labels"]["dice"][name]["n"] == 1
    assert requests.get(f"{server.url}/scoring/", params={"check_if_running": True}, timeout=30).status_code == 404


def test_scoring_can_be_waited_for_and_stopped(server: Server, tagged: dict[str, Path]) -> None:
    reply = requests.post(f"{server.url}{SCORE}", params={"run_sync": True}, timeout=60)
    assert strict(reply.text)["held_out"]["images"] >= 2
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(ask_mask, server.url, NEW[1], LONG, 120)
        time.sleep(0.2)
        assert requests.post(f"{server.url}/scoring/", timeout=30).json()["weak_label"]["result"]["status"] == "RUNNING"
        assert requests.delete(f"{server.url}/scoring/", timeout=30).json()["status"] == "RUNNING"
        busy.result()
    assert wait_for_score(server.url)["status"] == "STOPPED"

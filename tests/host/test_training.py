"""From tags to better masks over HTTP: train, publish, stop, resume, roll back; the real server and its real training process."""

from __future__ import annotations

import gzip
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import requests

from tests.host.server_process import Server
from tests.training.synthetic import blob_volume

NUM_CASES, NUM_SLICES = 8, 8
PRESENT = range(2, 5)
QUICK = {"stages": "classifier and diffusion", "start": "scratch", "minutes": 0.15}
TRAIN_LIMIT_S = 240
NUM_CLICKS, NUM_ROUNDS = 8, 6
ROUTES = ("train/weak_label", "train/")


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with images, classes and no model at all."""
    folder = tmp_path_factory.mktemp("train_studies")
    generator = np.random.default_rng(0)
    for number in range(NUM_CASES):
        image, _ = blob_volume(generator, NUM_SLICES, PRESENT if number % 2 == 0 else range(0))
        nib.save(nib.Nifti1Image(image, np.diag([-1.0, 1.0, 5.0, 1.0])), folder / f"case{number}.nii.gz")
    work = tmp_path_factory.mktemp("train_server")
    server = Server(folder, work, ["--model-dir", str(work / "models"), "--classes", "blob"])
    (work / "models").mkdir(exist_ok=True)
    try:
        yield server.wait()
        requests.delete(f"{server.url}/train/", timeout=30)
    finally:
        server.stop()


def train(server: Server, route: str = ROUTES[0], **params: object) -> requests.Response:
    return requests.post(f"{server.url}/{route}", json={**QUICK, **params}, timeout=30)


def tag_all(server: Server) -> None:
    """Enough to learn from."""
    tags = {f"case{number}": {"blob": [[PRESENT[0], PRESENT[-1]]] if number % 2 == 0 else False} for number in range(NUM_CASES)}
    requests.post(f"{server.url}/tags/bulk", json={"tags": tags, "user": "reader"}, timeout=30).raise_for_status()


def tasks(server: Server) -> list[dict[str, Any]]:
    """Every training since the server was started."""
    reply = requests.get(f"{server.url}/train/", params={"all": True}, timeout=30)
    return reply.json() if reply.status_code == 200 else []


def stop_all(server: Server) -> None:
    """Stops every training, also one that waits for its process."""
    deadline = time.monotonic() + 60
    while any(task["status"] in ("SUBMITTED", "RUNNING") for task in tasks(server)):
        assert time.monotonic() < deadline
        requests.delete(f"{server.url}/train/", timeout=30)
        time.sleep(0.2)


def stats(server: Server) -> dict[str, Any]:
    info = requests.get(f"{server.url}/info/", timeout=30)
    assert info.status_code == 200
    found: dict[str, Any] = info.json()["train_stats"]["weak_label"]
    assert all(math.isfinite(value) for value in found.values() if isinstance(value, float))
    return found


def wait_for(server: Server, *states: str, limit_s: float = TRAIN_LIMIT_S) -> dict[str, Any]:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        found = stats(server)
        if found.get("state") in states:
            return found
        assert found.get("state") != "failed", found
        time.sleep(0.5)
    raise AssertionError(f"{states} not reached within {limit_s} s: {stats(server)}\n{server.log.read_text()[-3000:]}")


def wait_for_idle(server: Server) -> None:
    """Until the training process has ended."""
    deadline = time.monotonic() + 30
    while requests.get(f"{server.url}/train/", params={"check_if_running": True}, timeout=30).status_code == 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.parametrize("route", ROUTES)
def test_too_little_to_learn_from_is_said_by_class(empty: Server, route: str) -> None:
    reply = train(empty, route)
    assert reply.status_code == 409
    assert "tag images of 4 more patient(s)" in reply.json()["detail"]
    assert "class 'blob': 2 more patient(s) tagged present" in reply.json()["detail"]
    assert "trainers" in requests.get(f"{empty.url}/info/", timeout=30).json()


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"stages": "everything"}, "stages = 'everything': must be one of"),
        ({"start": "there"}, "start = 'there': must be one of"),
        ({"minutes": "soon"}, "minutes = 'soon': must be a number"),
        ({"minutes": 0}, "must be more than 0"),
        ({"minutes": "nan"}, "minutes"),
        ({"epochs": "many"}, "epochs = 'many': must be a number"),
        ({"epochs": -1}, "epochs"),
        ({"force": "perhaps"}, "must be true or false"),
        ({"device": "abacus"}, "device = 'abacus'"),
        ({"seed": 1.5}, "seed = 1.5: must be a whole number"),
        ({"model": "other"}, "params must not hold ['model']"),
    ],
)
def test_bad_options_are_refused(empty: Server, params: dict[str, object], said: str) -> None:
    for reply in (train(empty, **params), train(empty, ROUTES[1], **params), train(empty, ROUTES[1], weak_label=params)):
        assert reply.status_code == 400
        assert said in reply.json()["detail"]


def test_options_of_an_unknown_trainer_are_refused(empty: Server) -> None:
    reply = train(empty, ROUTES[1], other={"minutes": 1})
    assert reply.status_code == 404
    assert "unknown trainer 'other': there are ['weak_label']" in reply.json()["detail"]
    reply = train(empty, ROUTES[1], weak_label="quick")
    assert reply.status_code == 400
    assert "send an object" in reply.json()["detail"]


@pytest.mark.parametrize("route", ["train/weak_label?run_sync=true", "train/?run_sync=true", "train/weak_label?enqueue=true"])
def test_training_in_the_request_and_in_a_queue_are_refused(empty: Server, route: str) -> None:
    reply = train(empty, route)
    assert reply.status_code == 400
    assert "is not offered: leave it out" in reply.json()["detail"]
    assert not tasks(empty)


def test_training_is_stopped_resumed_published_and_rolled_back(empty: Server) -> None:
    tag_all(empty)

    # A click, a second click, and Stop, which is a SIGKILL. What the host would stumble over is not for it.
    first = train(empty, gpus=1, bundle_path="/", other="x" * 200_000)
    assert first.status_code == 200
    assert first.json()["ignored_params"] == ["bundle_path", "gpus", "other"]
    second = train(empty)
    assert second.status_code == 429
    assert "a training is running" in second.json()["detail"]
    deadline = time.monotonic() + TRAIN_LIMIT_S
    while stats(empty).get("stage") != "classifier":
        assert time.monotonic() < deadline, empty.log.read_text()[-3000:]
        time.sleep(0.2)
    requests.delete(f"{empty.url}/train/", timeout=30).raise_for_status()
    stopped = stats(empty)
    assert stopped["state"] == "stopped"
    assert "Train resumes it" in stopped["message"]
    assert requests.post(f"{empty.url}/infer/cdm_saliency", params={"image": "case0"}, timeout=30).status_code == 404, "no weights yet"

    # The next click goes on and publishes; the server serves it without a restart.
    wait_for_idle(empty)
    again = train(empty)
    assert again.status_code == 200
    assert "ignored_params" not in again.json()
    done = wait_for(empty, "published", "kept back")
    assert done["state"] == "published"
    assert done["epoch"] == done["total_epochs"] == 100
    assert 0.0 <= done["best_metric"] <= 1.0
    reply = requests.post(f"{empty.url}/infer/cdm_saliency", params={"image": "case0", "output": "image"}, timeout=120)
    assert reply.status_code == 200, reply.text
    mask = nib.Nifti1Image.from_bytes(_plain(reply.content))
    assert mask.shape == (20, 24, NUM_SLICES)

    # Progress lines are what `GET /train/` shows, TensorBoard keeps the curves of the version.
    task = requests.get(f"{empty.url}/train/", timeout=30).json()
    assert any("% of the training, " in line for line in task["details"]), task["details"]
    logs = empty.log.parent / "models" / ".training" / "trained" / "tensorboard" / done["version"]
    assert {path.parent.name for path in logs.rglob("events.out.tfevents.*")} == {"classifier", "diffusion"}

    # Versions: one, and nothing before it.
    found = requests.get(f"{empty.url}/versions/", timeout=30).json()
    assert [entry["is_current"] for entry in found["versions"]] == [True]
    assert found["versions"][0]["version"] == found["current"] == done["version"]
    assert found["versions"][0]["held_out"]["mean"] == pytest.approx(done["best_metric"], abs=1e-3)
    assert requests.post(f"{empty.url}/versions/rollback", timeout=30).status_code == 404
    unknown = requests.post(f"{empty.url}/versions/rollback", params={"version": "../models"}, timeout=30)
    assert unknown.status_code == 404
    assert found["current"] in unknown.json()["detail"]
    kept = requests.get(f"{empty.url}/tags/case0", timeout=30).json()
    assert kept["tags"]["blob"] == [[PRESENT[0], PRESENT[-1]]]


@pytest.mark.parametrize("routes", [ROUTES[:1], ROUTES[1:], ROUTES])
def test_of_clicks_at_the_same_moment_one_trains(empty: Server, routes: tuple[str, ...]) -> None:
    tag_all(empty)
    stop_all(empty)  # the process of a training lives on a little after it has published
    together = Barrier(NUM_CLICKS)

    def click(number: int) -> requests.Response:
        with requests.Session() as session:
            session.get(f"{empty.url}/auth/", timeout=30)  # so that the connection is there already
            together.wait()
            return session.post(f"{empty.url}/{routes[number % len(routes)]}", json=QUICK, timeout=30)

    for _ in range(NUM_ROUNDS):
        before = len(tasks(empty))
        try:
            with ThreadPoolExecutor(NUM_CLICKS) as pool:
                replies = list(pool.map(click, range(NUM_CLICKS)))
            assert sorted(reply.status_code for reply in replies) == [200] + [429] * (NUM_CLICKS - 1)
            assert all("a training is running" in reply.json()["detail"] for reply in replies if reply.status_code == 429)
            assert len(tasks(empty)) == before + 1
        finally:
            stop_all(empty)


def test_train_without_a_name_is_answered_in_the_hosts_form(empty: Server) -> None:
    """As OHIF asks: the options under the name of the trainer."""
    tag_all(empty)
    try:
        reply = requests.post(f"{empty.url}/train/", json={"client_id": "test", "weak_label": {**QUICK, "seed": 3}}, timeout=30)
        assert reply.status_code == 200
        (answer,) = reply.json().values()
        assert answer["detail"] is None
        assert answer["result"]["ignored_params"] == ["client_id"]
        assert answer["result"]["request"].items() >= {**QUICK, "seed": 3, "model": "weak_label"}.items()
    finally:
        stop_all(empty)


def _plain(content: bytes) -> bytes:
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content

"""Kills at random moments: no acknowledged tag is lost, every model folder loads, and serving goes on.

A short version runs always; `make test-faults` kills fifty times (`APP_CDM_FAULTS` says how often).
"""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
import requests

from app_cdm.pipeline import CDMPipeline
from lib.versions import ModelVersions
from tests.host.server_process import REPOSITORY, Server
from tests.host.tiny_model import CLASS_NAMES, save_tiny_model
from tests.training.synthetic import blob_volume
from tests.waiting import wait_for

logger = logging.getLogger(__name__)
KILLS = int(os.environ.get("APP_CDM_FAULTS", "2"))
NUM_CASES, NUM_SLICES, WRITES = 8, 8, 200
QUICK = {"stages": "classifier and diffusion", "minutes": 0.05, "force": True, "device": "cpu"}
LONGEST_S = 25.0  # from the click on Train to the kill: imports, training and publishing are all within it
TIMEOUT_S = 120
PUBLISHER = """
import sys
from pathlib import Path
from lib.versions import ModelVersions
versions, source = ModelVersions(Path(sys.argv[1]), "tiny"), Path(sys.argv[2])
number = 0
while True:
    versions.publish(source, f"{number:012x}")
    print(number, flush=True)
    number += 1
"""


class Site:
    """A server that can be killed and started again on the same studies and models."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.starts = folder, 0
        self.models, self.studies = folder / "models", folder / "studies"
        self.studies.mkdir()
        save_tiny_model(self.models / "tiny")
        generator = np.random.default_rng(0)
        for number in range(NUM_CASES):
            image, _ = blob_volume(generator, NUM_SLICES, range(2, 5))
            nib.save(nib.Nifti1Image(image, np.diag([-1.0, 1.0, 5.0, 1.0])), self.studies / f"case{number}.nii.gz")
        self.server = self._start()

    def _start(self) -> Server:
        self.starts += 1
        work = self.folder / f"start_{self.starts}"
        work.mkdir()
        return Server(self.studies, work, ["--model-dir", str(self.models)]).wait()

    def trainers(self) -> list[psutil.Process]:
        """Processes that the server has started."""
        try:
            return psutil.Process(self.server.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def kill(self, what: str) -> None:
        """SIGKILL to the server, to its training, or to both; a training ends with its server."""
        trainers = self.trainers()
        if what in ("trainer", "both"):
            _kill(trainers)
        if what in ("server", "both"):
            self.server.process.kill()
            self.server.process.wait()
            _, left = psutil.wait_procs(trainers, timeout=TIMEOUT_S)  # one that is still importing finds out when it has
            assert not left, f"a training outlives its server: {left}"
            self.restart()

    def restart(self) -> None:
        """A server in the place of one that has ended."""
        self.server = self._start()

    def close(self) -> None:
        trainers = self.trainers()
        self.server.stop()
        _kill(trainers)


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=10)


class Writer(threading.Thread):
    """Tags one image after the other until it is stopped; remembers every action that was acknowledged."""

    def __init__(self, url: Callable[[], str]) -> None:
        super().__init__(daemon=True)
        self._url, self._ends, self.acknowledged, self.refused = url, threading.Event(), dict[str, list[int]](), list[str]()

    def run(self) -> None:
        number = 0
        while not self._ends.is_set():
            image, value = f"case{number % NUM_CASES}", [[number % 4, 4 + number % 4]]
            body = {"tags": dict.fromkeys(CLASS_NAMES, value), "user": "writer"}
            try:
                reply = requests.put(f"{self._url()}/tags/{image}", json=body, timeout=TIMEOUT_S)
            except requests.RequestException:  # the server is dead: nothing was acknowledged
                time.sleep(0.05)
                continue
            if reply.ok:
                self.acknowledged.setdefault(image, []).append(reply.json()["action"])
            else:
                self.refused.append(f"{reply.status_code} {reply.text}")
            number += 1

    def stop(self) -> None:
        self._ends.set()
        self.join(TIMEOUT_S)
        assert not self.is_alive()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    found = Site(tmp_path_factory.mktemp("faults"))
    try:
        yield found
    finally:
        found.close()


def click_train(site: Site, **options: object) -> int:
    return requests.post(f"{site.server.url}/train/weak_label", json={**QUICK, **options}, timeout=TIMEOUT_S).status_code


def train_stats(site: Site) -> dict[str, object]:
    found = requests.get(f"{site.server.url}/info/", timeout=TIMEOUT_S).json()["train_stats"]["weak_label"]
    assert isinstance(found, dict)
    return found


def lost_actions(site: Site, acknowledged: dict[str, list[int]]) -> list[str]:
    lost = []
    for image, actions in acknowledged.items():
        reply = requests.get(f"{site.server.url}/tags/{image}/history", timeout=TIMEOUT_S)
        assert reply.status_code == 200, reply.text
        there = {event["action"] for event in reply.json()["history"]}
        lost += [f"{image}: {action}" for action in actions if action not in there]
    return lost


def check_models(models: Path) -> int:
    """Loads every published folder and the one in service; returns how many versions there are."""
    versions = ModelVersions(models, "tiny")
    for name in versions.names():
        CDMPipeline.from_pretrained(versions.folder(name))
    CDMPipeline.from_pretrained(versions.folder())
    return len(versions.names())


def check_serving(site: Site) -> None:
    assert requests.get(f"{site.server.url}/info/", timeout=TIMEOUT_S).status_code == 200
    form = {"params": (None, '{"mode": "intensity", "gate": "off"}')}
    reply = requests.post(
        f"{site.server.url}/infer/cdm_saliency", params={"image": "case0", "output": "image"}, files=form, timeout=TIMEOUT_S
    )
    assert reply.status_code == 200, reply.text


@pytest.mark.timeout(60 + 240 * max(KILLS, 1))
def test_kills_at_random_moments_lose_nothing(site: Site, record_property: Callable[[str, object], None]) -> None:
    lot = random.Random(2026)
    writer = Writer(lambda: site.server.url)
    writer.start()
    try:
        while len(writer.acknowledged) < NUM_CASES:
            assert writer.is_alive() and not writer.refused, writer.refused
            time.sleep(0.05)
        kinds = []
        for number in range(KILLS):
            assert click_train(site) in (200, 429)
            time.sleep(lot.uniform(0.0, min(LONGEST_S, LONGEST_S * KILLS / 10)))
            kinds.append(("server", "both", "trainer")[number % 3])
            site.kill(kinds[-1])
            check_serving(site)
            num_versions = check_models(site.models)
            lost = lost_actions(site, {image: list(actions) for image, actions in writer.acknowledged.items()})
            assert not lost, f"kill {number} of {kinds[-1]}: {lost[:5]}"
    finally:
        writer.stop()
    assert not writer.refused, writer.refused[:3]
    total = sum(map(len, writer.acknowledged.values()))
    assert total >= NUM_CASES
    record_property("kills", len(kinds))
    record_property("acknowledged tag writes", total)
    record_property("versions", num_versions)
    logger.info("%d kills, %d starts, %d acknowledged writes, %d versions that load", len(kinds), site.starts, total, num_versions)


def test_a_long_training_ends_with_its_server_killed_or_interrupted_and_is_resumed(site: Site) -> None:
    tags = {f"case{number}": {name: [[2, 4]] for name in CLASS_NAMES} for number in range(NUM_CASES)}
    requests.post(f"{site.server.url}/tags/bulk", json={"tags": tags, "user": "first"}, timeout=TIMEOUT_S).raise_for_status()
    wait_for(lambda: click_train(site, minutes=30) == 200, "the training before to end", TIMEOUT_S)
    wait_for(lambda: train_stats(site).get("stage") == "classifier", "the first step", TIMEOUT_S)
    trainers = site.trainers()
    assert trainers
    site.server.process.kill()
    site.server.process.wait()
    _, left = psutil.wait_procs(trainers, timeout=5)
    assert not left, "the training outlives its server"
    site.restart()
    assert train_stats(site)["state"] == "stopped"
    assert click_train(site, minutes=30) == 200
    wait_for(lambda: train_stats(site).get("state") == "running" and train_stats(site).get("stage"), "the training to go on", TIMEOUT_S)
    trainers = site.trainers()
    assert site.server.stop() == 0, "the server waits for its training"
    assert not psutil.wait_procs(trainers, timeout=5)[1]
    site.restart()


def test_two_hundred_concurrent_writes_during_a_training_are_all_there(site: Site) -> None:
    tags = {f"case{number}": {name: [[2, 4]] for name in CLASS_NAMES} for number in range(NUM_CASES)}
    requests.post(f"{site.server.url}/tags/bulk", json={"tags": tags, "user": "first"}, timeout=TIMEOUT_S).raise_for_status()
    _kill(site.trainers())
    wait_for(lambda: click_train(site) == 200, "the training before to end", TIMEOUT_S)

    def write(number: int) -> tuple[str, int]:
        image, name = f"case{number % NUM_CASES}", CLASS_NAMES[number % len(CLASS_NAMES)]
        body = {"value": [[number % 3, 3 + number % 5]], "user": f"user{number}"}
        reply = requests.put(f"{site.server.url}/tags/{image}", params={"class": name}, json=body, timeout=TIMEOUT_S)
        assert reply.status_code == 200, reply.text
        return image, reply.json()["action"]

    with ThreadPoolExecutor(20) as pool:
        written = list(pool.map(write, range(WRITES)))
    assert site.trainers(), "the training ended before the writes did"
    assert len({action for _, action in written}) == WRITES
    assert not lost_actions(site, {image: [action for other, action in written if other == image] for image, _ in written})
    users = {
        event["user"]
        for number in range(NUM_CASES)
        for event in requests.get(f"{site.server.url}/tags/case{number}/history", timeout=TIMEOUT_S).json()["history"]
    }
    assert {f"user{number}" for number in range(WRITES)} <= users


@pytest.mark.timeout(60 + 20 * max(KILLS, 1))
def test_publisher_killed_at_random_moments_leaves_no_half_version(tmp_path: Path) -> None:
    """Copying, moving and switching are most of what the killed process does, unlike in a training."""
    lot = random.Random(7)
    models, source = tmp_path / "models", save_tiny_model(tmp_path / "source")
    save_tiny_model(models / "tiny", seed=1)
    published = 0
    for _ in range(KILLS):
        command = [sys.executable, "-c", PUBLISHER, str(models), str(source)]
        with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == "0"
            time.sleep(lot.uniform(0.0, 0.3))
            process.send_signal(signal.SIGKILL)
            published += 1 + len(process.stdout.read().split())
        check_models(models)
    assert published >= KILLS
    assert len(list((models / ".versions" / "tiny").glob(".2*"))) <= 1, "what a killed publisher left is removed by the next one"

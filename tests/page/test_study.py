"""A whole study by keys alone: tagged from start to finish, through a crash of the server, and trained on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from playwright.sync_api import Browser, expect

from tests.host.server_process import Server
from tests.page.conftest import NUM_BLOBS, PRESENT
from tests.page.reader import Reader

TRAIN_LIMIT_MS = 240_000


class Machine:
    """A server that can be killed and started again at its old address.

    Args:
        studies: its studies.
        work: folder for its log, caches and models.
    """

    def __init__(self, studies: Path, work: Path) -> None:
        (work / "models").mkdir()
        self._arguments = ["--model-dir", str(work / "models"), "--classes", "blob"]
        self._studies, self._work = studies, work
        self.server = Server(studies, work, self._arguments)

    def kill(self) -> None:
        self.server.process.send_signal(signal.SIGKILL)
        self.server.process.wait(timeout=20)

    def start(self) -> None:
        self.server = Server(self._studies, self._work, self._arguments, port=self.server.port).wait()


@pytest.fixture(scope="module")
def machine(blob_studies: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    running = Machine(blob_studies, tmp_path_factory.mktemp("study_server"))
    try:
        running.server.wait()
        yield running
        if running.server.process.poll() is None:
            requests.delete(f"{running.server.url}/train/", timeout=30)
    finally:
        running.server.stop()


@pytest.fixture
def ann(browser: Browser, machine: Machine) -> Iterator[Reader]:
    with Reader(browser, machine.server.url) as reader:
        yield reader


def test_a_tag_outlives_the_server(ann: Reader, machine: Machine) -> None:
    ann.open("case7")
    ann.sees("opinion-text", "No opinion: no weights")
    machine.kill()
    ann.press("a")
    ann.sees("saved", "1 tag not saved")
    ann.sees("status", "A tag is not saved yet, and is sent again: the server does not answer")
    expect(ann.page.locator(".class[data-name=blob] .mark")).to_have_text("not saved")
    expect(ann.page.locator("#saved")).to_have_class("saved is-unsaved")
    questions: list[str] = []
    ann.page.once("dialog", lambda dialog: (questions.append(dialog.type), dialog.dismiss()))
    with ann.page.expect_event("dialog"):
        ann.page.close(run_before_unload=True)
    ann.press("ArrowUp")  # the page is still there, and works
    ann.sees("slice-text", "Slice 3 of")
    assert questions == ["beforeunload"]
    machine.start()
    ann.sees_tag("blob", "absent")
    ann.sees("saved", "All saved")
    assert ann.stored("case7") == {"blob": False}


def test_a_study_is_tagged_from_start_to_finish_and_trained_on(ann: Reader) -> None:
    requests.put(f"{ann.url}/tags/case7", json={"tags": {"blob": None}}, timeout=30).raise_for_status()
    ann.open().page.locator("#slice-text:not(:empty)").wait_for()
    ann.press("t", "Enter")
    ann.sees("train-message", "too few tags to learn from")
    ann.sees("train-message", "class 'blob': 2 more patient(s) tagged present")
    ann.press("Escape")

    seen = []
    for number in range(NUM_BLOBS):
        image = ann.text("case-name")
        seen.append(image)
        if int(image.removeprefix("case")) % 2 == 0:
            ann.goes_to(PRESENT[0]).press("f").goes_to(PRESENT[-1]).press("l")
            ann.sees_tag("blob", f"slices {PRESENT[0]}–{PRESENT[-1]}")
        else:
            ann.press("a")
            ann.sees_tag("blob", "absent")
        ann.sees("progress-text", f"{number + 1} / {NUM_BLOBS} tagged")
        ann.press("n")
        if number < NUM_BLOBS - 1:
            expect(ann.page.locator("#case-name")).not_to_have_text(image, timeout=60_000)
            ann.page.locator("#slice-text:not(:empty)").wait_for()
    ann.sees("status", "No case is left")
    assert sorted(seen) == [f"case{number}" for number in range(NUM_BLOBS)]
    for number in range(NUM_BLOBS):
        assert ann.stored(f"case{number}") == {"blob": [[PRESENT[0], PRESENT[-1]]] if number % 2 == 0 else False}
    ann.page.reload()
    ann.sees_tag("blob", "absent" if int(seen[-1].removeprefix("case")) % 2 else "slices 2–4")
    ann.sees("progress-text", f"{NUM_BLOBS} / {NUM_BLOBS} tagged")

    ann.sees("model", "No model yet.")
    ann.press("t")
    ann.chooses("option-stages", "classifier and diffusion").chooses("option-start", "scratch")
    ann.tabs_to("option-minutes").press("Control+a")
    ann.page.keyboard.insert_text("0.05")
    ann.tabs_to("train-start").press("Enter")
    ann.sees("train-text", "Training")
    ann.press("Enter")
    ann.sees("train-message", "a training is running")
    expect(ann.page.locator("#train-message")).to_contain_text("is in service", timeout=TRAIN_LIMIT_MS)
    expect(ann.page.locator("#train-text")).to_have_text("Train", timeout=60_000)
    current = requests.get(f"{ann.url}/versions/", timeout=30).json()["current"]
    ann.sees("model", f"version {current}.")
    ann.press("Escape")
    ann.sees("score-text", "blob here:")  # the new model's opinion of the case on the screen

"""What is asked of a PACS: all of its answer, and as rarely and as patiently as it needs."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import requests
from dicomweb_client import DICOMwebClient
from pydicom.dataset import Dataset

from app_cdm.data.qido import text_of
from lib.dicomweb import kept
from lib.dicomweb.archive import Archive
from lib.dicomweb.kept import Kept
from tests.host.dicomweb_process import DicomWeb
from tests.waiting import wait_for


def series(number: int) -> Dataset:
    item = Dataset()
    item.StudyInstanceUID, item.SeriesInstanceUID, item.Modality, item.PatientID = "1.2", f"1.2.{number}", "MR", f"P{number % 7}"
    return item


@pytest.mark.parametrize(
    ("num_series", "most", "num_searches"),
    [(123, 50, 3), (100, 50, 3), (123, None, 1), (150, None, 2), (0, 50, 1)],
    ids=["three pages", "two full pages", "all at once", "a server that knows no offsets", "empty"],
)
def test_every_series_is_listed_whatever_a_server_puts_in_one_answer(
    tmp_path: Path, num_series: int, most: int | None, num_searches: int
) -> None:
    pacs = DicomWeb(tmp_path, most)
    pacs.instances = [series(number) for number in range(num_series)]
    try:
        archive = Archive(DICOMwebClient(pacs.url), ["MR"], {}, 60)
        images = archive.images()
        assert set(images) == {f"1.2.{number}" for number in range(num_series)}
        assert len({image.patient for image in images.values()}) == min(7, num_series)
        assert archive.images() is images
        assert pacs.num_searches == num_searches
    finally:
        pacs.stop()


def test_a_series_is_found_that_came_after_the_list_and_not_once_it_is_gone(tmp_path: Path) -> None:
    pacs = DicomWeb(tmp_path)
    pacs.instances = [series(1)]
    try:
        archive = Archive(DICOMwebClient(pacs.url), ["MR"], {}, 0.5)
        archive._images = Kept(archive._find_images, refresh_s=3600)  # as that of a PACS whose list takes minutes
        assert set(archive.images()) == {"1.2.1"}
        assert archive.find("1.2.2") is None
        pacs.instances.append(series(2))
        time.sleep(0.6)
        assert archive.find("1.2.2") is not None
        assert set(archive.images()) == {"1.2.1", "1.2.2"}
        pacs.instances.pop()
        time.sleep(0.6)
        assert archive.find("1.2.2") is None
        assert set(archive.images()) == {"1.2.1"}
        asked = pacs.num_searches
        assert [archive.find("1.2.2") for _ in range(5)] == [None] * 5
        assert pacs.num_searches == asked
        other = series(3)
        other.Modality = "CT"
        pacs.instances.append(other)
        assert archive.find("1.2.3") is None, "not what is listed here"
        asked = pacs.num_searches
        assert archive.find("*") is None and pacs.num_searches == asked
    finally:
        pacs.stop()


def segmentation(number: int, image: str) -> Dataset:
    item, referenced = series(number), Dataset()
    item.Modality, item.SOPInstanceUID, item.ContentDate, item.ContentTime = "SEG", f"1.2.{number}.1", "20260102", f"1200{number:02}"
    referenced.SeriesInstanceUID = image
    item.ReferencedSeriesSequence = [referenced]
    return item


def test_segmentations_of_one_image_are_as_the_pacs_has_them_now(tmp_path: Path) -> None:
    pacs = DicomWeb(tmp_path)
    pacs.instances = [series(1), series(2), segmentation(11, "1.2.1"), segmentation(12, "1.2.2")]
    try:
        archive = Archive(DICOMwebClient(pacs.url), ["MR"], {}, 3600)

        def all_of_them() -> list[str]:
            return [item.uid for item in archive.segmentations()]

        def of(image: str) -> list[str]:
            return [item.uid for item in archive.segmentations_of(image)]

        assert all_of_them() == ["1.2.11", "1.2.12"]
        pacs.instances.append(segmentation(10, "1.2.2"))
        pacs.instances.append(segmentation(13, "1.2.1"))
        assert all_of_them() == ["1.2.11", "1.2.12"]
        assert of("1.2.1") == ["1.2.11", "1.2.13"]
        assert all_of_them() == ["1.2.11", "1.2.12", "1.2.13"], "what was found of one image is told of all"
        assert of("1.2.2") == ["1.2.10", "1.2.12"]
        assert all_of_them() == ["1.2.10", "1.2.11", "1.2.12", "1.2.13"]
        pacs.instances = [item for item in pacs.instances if item.SeriesInstanceUID != "1.2.11"]
        assert of("1.2.1") == ["1.2.13"]
        assert all_of_them() == ["1.2.10", "1.2.12", "1.2.13"]
        assert of("9.9") == []
        archive._segmentations.forget()
        assert all_of_them() == ["1.2.10", "1.2.12", "1.2.13"], "a list that is made anew says it all"
        assert archive._drawn_on == {}
    finally:
        pacs.stop()


class RefusedMetadata:
    """A client that gets an error instead of the metadata of some series."""

    def __init__(self, client: DICOMwebClient, refused: dict[str, Exception]) -> None:
        self._client, self.refused, self.asked = client, refused, list[str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def retrieve_series_metadata(self, study: str, uid: str) -> Any:
        self.asked.append(uid)
        if uid in self.refused:
            raise self.refused[uid]
        return self._client.retrieve_series_metadata(study, uid)


def test_segmentations_that_cannot_be_read_hide_no_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pacs = DicomWeb(tmp_path)
    malformed = segmentation(13, "1.2.1")
    del malformed.ReferencedSeriesSequence[0].SeriesInstanceUID
    malformed.ReferencedSeriesSequence[0].Modality = "MR"
    pacs.instances = [series(1), malformed, *(segmentation(number, "1.2.1") for number in (10, 11, 12))]
    client = RefusedMetadata(DICOMwebClient(pacs.url), {"1.2.11": requests.HTTPError("404"), "1.2.12": requests.HTTPError("500")})
    try:
        archive = Archive(client, ["MR"], {}, refresh_s=0)
        for _ in range(3):
            assert [item.uid for item in archive.segmentations()] == ["1.2.10"]
        assert sorted(record.args[0] for record in caplog.records if "is left out" in record.message) == ["1.2.11", "1.2.12", "1.2.13"]
        assert client.asked.count("1.2.13") == 1, "what is malformed stays so"
        client.refused.clear()
        assert [item.uid for item in archive.segmentations()] == ["1.2.10", "1.2.11", "1.2.12"], "what the PACS did not give may come"
    finally:
        pacs.stop()


@pytest.mark.parametrize("error", [requests.ConnectionError, requests.Timeout])
def test_a_pacs_that_cannot_be_reached_has_not_lost_its_segmentations(tmp_path: Path, error: type[Exception]) -> None:
    pacs = DicomWeb(tmp_path)
    pacs.instances = [series(1), segmentation(10, "1.2.1"), segmentation(11, "1.2.1")]
    try:
        archive = Archive(RefusedMetadata(DICOMwebClient(pacs.url), {"1.2.11": error("no answer")}), ["MR"], {}, refresh_s=0)
        with pytest.raises(error, match="no answer"):
            archive.segmentations()
    finally:
        pacs.stop()


@pytest.mark.parametrize(
    ("item", "expected"),
    [({}, ""), ({"00100020": {"vr": "LO"}}, ""), ({"00100020": {"Value": [None]}}, ""), ({"00100020": {"Value": [" A1 "]}}, "A1")],
)
def test_values_that_a_server_leaves_out_are_empty(item: dict[str, dict[str, object]], expected: str) -> None:
    assert text_of(item, "PatientID") == expected


class Question:
    """Answers 1, 2, 3, ...; from the second time on only when it may."""

    def __init__(self) -> None:
        self.count, self.may = 0, threading.Event()

    def __call__(self) -> int:
        self.count += 1
        if self.count > 1:
            assert self.may.wait(30)
        return self.count


def test_an_answer_that_is_old_serves_until_a_slow_archive_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "PATIENCE_S", 0.05)
    patience: list[float | None] = []

    class Watched(Future[int]):
        def result(self, timeout: float | None = None) -> int:
            patience.append(timeout)
            return super().result(timeout)

    monkeypatch.setattr(kept, "Future", Watched)
    question = Question()
    answer = Kept(question, refresh_s=0)
    assert [answer.get(), answer.get(), answer.get()] == [1, 1, 1]
    assert question.count == 2, "one question is under way, whoever asks meanwhile"
    assert [answer.get() for _ in range(200)] == [1] * 200
    assert patience[-200:] == [0.0] * 200, "one request that looks often waits once"
    time.sleep(0.1)
    question.may.set()
    wait_for(lambda: answer.get() == 2, "the new answer")
    asked = question.count
    assert [answer.get() for _ in range(50)] == [2] * 50
    assert question.count == asked, "an archive that was slow is left alone for nine times as long"


def test_a_quick_archive_is_asked_whenever_its_answer_is_old() -> None:
    numbers = iter(range(100))
    answer = Kept(lambda: next(numbers), refresh_s=0)
    assert [answer.get() for _ in range(5)] == [0, 1, 2, 3, 4]
    numbers = iter(range(100))
    assert [Kept(lambda: next(numbers), refresh_s=60).get() for _ in range(2)] == [0, 1]


def test_what_was_asked_before_all_was_forgotten_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "PATIENCE_S", 0.05)
    question = Question()
    answer = Kept(question, refresh_s=0)
    assert [answer.get(), answer.get()] == [1, 1]
    answer.forget()
    threading.Timer(0.2, question.may.set).start()
    assert answer.get() == 3


def test_after_an_error_nothing_is_kept() -> None:
    outcomes: list[object] = [1, OSError("the PACS is down"), TimeoutError("no answer"), 2]

    def ask() -> object:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    answer = Kept(ask, refresh_s=0)
    assert answer.get() == 1
    with pytest.raises(OSError, match="the PACS is down"):
        answer.get()
    with pytest.raises(TimeoutError, match="no answer"):
        answer.get()
    assert answer.get() == 2

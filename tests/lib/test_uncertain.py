"""Next Sample by doubt: the order, what is scored again, and a thread that is in nobody's way."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from monailabel.interfaces.datastore import Datastore

from app_cdm.data.volume import Volume, read_volume
from lib.activelearning import sources
from lib.activelearning.doubt import find_doubts
from lib.activelearning.scorer import DoubtScorer
from lib.activelearning.strategies import strategies
from lib.datastore import FolderDatastore
from lib.models import ModelStore
from lib.options import AppOptions
from lib.tags.book import TagBook
from lib.tags.datastore import add_tags
from lib.tags.images import DatastoreImages
from lib.tags.store import TagStore
from tests.host.studies import head, write_dicom_series, write_nifti
from tests.host.tiny_model import CLASS_NAMES, save_tiny_model

# diffusers leaves closing the weights, which are read without a memory map, to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")

CASES = ("case0", "case1", "case2")


@dataclass
class Desk:
    """What a server has, without the server."""

    work: Path
    models: ModelStore
    datastore: Datastore
    tags: TagBook

    def scorer(self) -> DoubtScorer:
        return DoubtScorer(self.models, self.datastore, self.tags, self.work / "doubts")

    def lines(self) -> int:
        """Scores that were ever computed."""
        return sum(len(path.read_text().splitlines()) for path in (self.work / "doubts").glob("*.jsonl"))

    def publish(self, seed: int) -> None:
        save_tiny_model(self.work / "models" / "tiny", seed, methods=[])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny", methods=[])


@pytest.fixture
def desk(tmp_path: Path, tiny: Path) -> Iterator[Desk]:
    shutil.copytree(tiny, tmp_path / "models" / "tiny")
    studies = tmp_path / "studies"
    studies.mkdir()
    for seed, name in enumerate(CASES):
        write_nifti(studies / f"{name}.nii.gz", head(seed))
    store = TagStore(tmp_path / "tags.sqlite")
    datastore = FolderDatastore(studies, tmp_path / "cache", auto_reload=False)
    book = TagBook(store, DatastoreImages(datastore), lambda: CLASS_NAMES)
    yield Desk(tmp_path, ModelStore(AppOptions(tmp_path / "models", device="cpu")), add_tags(datastore, book, tmp_path / "codes"), book)
    store.close()


def click(desk: Desk, scorer: DoubtScorer, strategy: str = "uncertain", **request: Any) -> Any:
    return strategies(desk.tags, scorer)[strategy](request, desk.datastore)


def by_doubt(desk: Desk, *classes: str) -> list[str]:
    """The cases, the most doubtful first, computed afresh."""
    pipeline = desk.models.pipeline()
    found = {}
    for name in CASES:
        doubts = find_doubts(pipeline, pipeline.classifier, read_volume(desk.datastore.get_image_uri(name)))
        found[name] = max(doubts[item] for item in classes or CLASS_NAMES)
    return sorted(found, key=lambda name: -found[name])


def test_the_most_doubtful_image_comes_first_then_the_others_in_turn(desk: Desk) -> None:
    scorer = desk.scorer()
    scorer.sweep()
    offered = strategies(desk.tags, scorer)
    assert offered["random"] is offered["uncertain"]
    expected = by_doubt(desk)
    assert [offered["uncertain"]({}, desk.datastore)["id"] for _ in range(4)] == [*expected, expected[0]]
    assert offered["untagged"]({}, desk.datastore)["id"] == expected[1], "offers count for every strategy"


def test_only_classes_without_a_tag_count_and_tagged_images_only_on_request(desk: Desk) -> None:
    desk.publish(seed=4)  # whose two classes doubt other images most
    scorer = desk.scorer()
    scorer.sweep()
    orders = set()
    for name in CLASS_NAMES:
        other = next(item for item in CLASS_NAMES if item != name)
        desk.tags.write({case: {name: False, other: None} for case in CASES}, "ann", "manual")
        offered = strategies(desk.tags, scorer)["uncertain"]
        order = [offered({}, desk.datastore)["id"] for _ in CASES]
        assert order == by_doubt(desk, other)
        orders.add(tuple(order))
    assert len(orders) == 2, "the classes must differ for this to mean anything"
    desk.tags.write({case: dict.fromkeys(CLASS_NAMES, False) for case in CASES}, "ann", "manual")
    assert click(desk, scorer) is None
    assert click(desk, scorer, include_tagged=True) == {"id": by_doubt(desk)[0]}


def test_without_a_model_and_before_the_first_score_the_order_is_that_of_untagged(desk: Desk) -> None:
    scorer = desk.scorer()
    assert [click(desk, scorer)["id"], click(desk, scorer, "untagged")["id"]] == ["case0", "case0"]
    scorer.sweep()
    assert scorer.ranking().doubts
    shutil.rmtree(desk.work / "models" / "tiny")
    scorer.sweep()
    assert not scorer.ranking().doubts
    assert click(desk, scorer) == {"id": "case0"}


def test_what_is_not_scored_comes_later_and_what_cannot_be_read_last(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    scorer = desk.scorer()
    scorer.sweep()
    write_nifti(desk.work / "studies" / "aaa.nii.gz", head(5))
    (desk.work / "studies" / "aa_broken.nii.gz").write_text("this is not an image")
    desk.datastore.rescan()
    offered = strategies(desk.tags, scorer)["uncertain"]
    assert offered({}, desk.datastore)["id"] == by_doubt(desk)[0]
    with caplog.at_level(logging.WARNING):
        scorer.sweep()
        scorer.sweep()
    assert len(caplog.records) == 1 and "aa_broken" in caplog.text and "Traceback" not in caplog.text
    assert set(scorer.ranking().doubts) == {*CASES, "aaa"}
    order = [offered({}, desk.datastore)["id"] for _ in range(4)]
    assert set(order[:3]) == {*CASES, "aaa"} - {by_doubt(desk)[0]} and "aa_broken" not in order
    write_nifti(desk.work / "studies" / "aa_broken.nii.gz", head(6))
    scorer.sweep()
    assert "aa_broken" in scorer.ranking().doubts, "a file that was mended is looked at again"


def test_nothing_is_scored_twice_unless_file_or_model_changed(desk: Desk) -> None:
    first = desk.scorer()
    first.sweep()
    assert desk.lines() == 3
    again = desk.scorer()
    again.sweep()
    assert desk.lines() == 3, "scores survive a restart"
    assert again.ranking().doubts == first.ranking().doubts

    write_nifti(desk.work / "studies" / "case1.nii.gz", head(8))
    again.sweep()
    assert desk.lines() == 4
    changed = {name for name in CASES if again.ranking().doubts[name] != first.ranking().doubts[name]}
    assert changed == {"case1"}

    old = again.ranking().doubts
    desk.publish(seed=1)
    again.sweep()
    assert desk.lines() == 7
    assert all(again.ranking().doubts[name] != old[name] for name in CASES)
    desk.publish(seed=0)
    again.sweep()
    assert desk.lines() == 7, "back to a version whose scores are known"
    assert again.ranking().doubts == old


def test_a_damaged_cache_costs_one_score_and_old_versions_are_forgotten(desk: Desk) -> None:
    scorer = desk.scorer()
    scorer.sweep()
    before = scorer.ranking().doubts
    (file,) = (desk.work / "doubts").glob("*.jsonl")
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], lines[1][:20], "7", lines[2]]) + "\n")
    again = desk.scorer()
    again.sweep()
    assert again.ranking().doubts == before
    for number in range(4):
        other = file.with_name(f"version{number}.jsonl")
        other.touch()
        os.utime(other, (number, number))
    desk.scorer().sweep()
    assert sorted(path.stem for path in file.parent.glob("*.jsonl")) == sorted(["version2", "version3", file.stem])


def test_a_dicom_series_is_scored_where_it_lies(desk: Desk) -> None:
    uid = write_dicom_series(desk.work / "studies" / "patient")
    desk.datastore.rescan()
    scorer = desk.scorer()
    scorer.sweep()
    assert set(scorer.ranking().doubts) == {*CASES, uid}
    assert not list((desk.work / "cache").rglob("*.nii.gz")), "nothing is converted for it"


def test_the_thread_waits_for_the_network_and_ends_when_asked(desk: Desk) -> None:
    scorer = desk.scorer()
    with desk.models.network_turn():
        scorer.start()
        scorer.start()
        time.sleep(0.3)
        assert [thread.name for thread in threading.enumerate()].count("DoubtScorer") == 1
        assert not scorer.ranking().doubts
    deadline = time.monotonic() + 20
    while len(scorer.ranking().doubts) < len(CASES):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    write_nifti(desk.work / "studies" / "another.nii.gz", head(9))
    desk.datastore.rescan()
    scorer.wake()
    while "another" not in scorer.ranking().doubts:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    thread = scorer._thread
    scorer.stop()
    assert thread is not None and not thread.is_alive()


def test_simultaneous_clicks_get_different_images(desk: Desk) -> None:
    scorer = desk.scorer()
    scorer.sweep()
    offered = strategies(desk.tags, scorer)
    with ThreadPoolExecutor(3) as pool:
        names = list(pool.map(lambda name: offered[name]({}, desk.datastore)["id"], ("uncertain", "next", "random")))
    assert sorted(names) == list(CASES)


def test_thousands_of_images_are_offered_without_being_read(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def noted(path: Path) -> Volume:
        read.append(path)
        return read_volume(path)

    monkeypatch.setattr(sources, "read_volume", noted)
    scorer = desk.scorer()
    scorer.sweep()
    assert len(read) == len(CASES), "the scorer reads images in this way"
    read.clear()
    for number in range(3000):
        (desk.work / "studies" / f"many{number}.nii.gz").touch()
    desk.datastore.rescan()
    desk.tags.store.append({f"many{number}": dict.fromkeys(CLASS_NAMES, False) for number in range(1000)}, "ann", "manual")
    offered = strategies(desk.tags, scorer)
    for name in ("uncertain", "next", "untagged", "first"):
        assert offered[name]({}, desk.datastore) is not None
    assert read == []

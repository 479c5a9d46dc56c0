"""What the trainer does with a candidate: published, kept back, or published all the same."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from app_cdm.config import SettingsError
from app_cdm.data.tags import TagTable
from app_cdm.data.volume import VolumeError
from app_cdm.pipeline import CDMPipeline
from app_cdm.training.held_out import TooFewTagsError
from app_cdm.training.retrain import Candidate
from lib.datastore import FolderDatastore
from lib.options import AppOptions
from lib.tags.book import TagBook
from lib.tags.images import DatastoreImages
from lib.tags.store import TagStore
from lib.trainers import weak_label
from lib.trainers.weak_label import WeakLabel, served_versions
from lib.versions import ORIGINAL
from tests.host.studies import head, write_nifti, write_picture
from tests.host.tiny_model import CLASS_NAMES, save_tiny_model

# diffusers leaves closing the weights to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


@pytest.fixture
def book(tmp_path: Path) -> Iterator[TagBook]:
    (tmp_path / "studies").mkdir()
    for seed in range(4):
        write_nifti(tmp_path / "studies" / f"case{seed}.nii.gz", head(seed))
    write_picture(tmp_path / "studies" / "picture.png")
    datastore = FolderDatastore(tmp_path / "studies", tmp_path / "cache", auto_reload=False)
    store = TagStore(tmp_path / "tags.sqlite")
    yield TagBook(store, DatastoreImages(datastore), lambda: CLASS_NAMES)
    store.close()


@pytest.fixture
def options(tmp_path: Path) -> AppOptions:
    save_tiny_model(tmp_path / "models" / "tiny")
    return AppOptions(tmp_path / "models", device="cpu")


def train(
    options: AppOptions, book: TagBook, monkeypatch: pytest.MonkeyPatch, scores: dict[str, float], **request: object
) -> dict[str, Any]:
    """A training whose networks are those of another seed, judged as said; the model in use has .8."""
    folder = save_tiny_model(options.model_dir.parent / "candidate", seed=1)
    found = Candidate(folder, {**scores, "mean": 0.5}, {"gate/tumor": 0.8, "mean": 0.8})
    monkeypatch.setattr(weak_label, "retrain", lambda *_: found)
    return WeakLabel(options, book, str)({"minutes": 1, **request}, book.images._datastore)  # type: ignore[attr-defined]


def test_what_is_worse_or_not_judged_is_kept_back_unless_forced(
    options: AppOptions, book: TagBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    worse = train(options, book, monkeypatch, {"gate/tumor": 0.7})
    assert worse["state"] == "kept back"
    assert "held-out score 0.700, before 0.800" in worse["message"]
    unjudged = train(options, book, monkeypatch, {})
    assert unjudged["state"] == "kept back"
    assert "not judged" in unjudged["message"] and "force=true" in unjudged["message"]
    assert served_versions(options).current() == ORIGINAL
    forced = train(options, book, monkeypatch, {"gate/tumor": 0.7}, force=True)
    assert forced["state"] == "published"
    in_service = served_versions(options)
    assert in_service.current() == forced["version"] != ORIGINAL
    new = CDMPipeline.from_pretrained(in_service.folder()).model_version
    assert forced["version"].endswith(new) and new != CDMPipeline.from_pretrained(options.model_dir / "tiny").model_version


def test_a_model_of_other_classes_is_trained_from_scratch_and_not_replaced_unseen(
    options: AppOptions, book: TagBook, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = TagBook(book.store, book.images, lambda: ("tumor",))
    trainer = WeakLabel(options, other, str)
    with pytest.raises(SettingsError, match=r"knows the classes edema, tumor, and tags are for tumor: .* start = scratch"):
        trainer.check({})
    with pytest.raises(SettingsError, match=r"stages \['student'\] build on a trained model, and start = 'scratch' leaves"):
        trainer.check({"start": "scratch", "stages": "student"})
    with pytest.raises(TooFewTagsError):
        trainer.check({"start": "scratch"})
    nothing = AppOptions(tmp_path / "nothing", device="cpu")
    with pytest.raises(SettingsError, match="there is no model"):
        WeakLabel(nothing, book, str).check({"stages": "cldf"})

    found = Candidate(save_tiny_model(tmp_path / "candidate", seed=1), {"gate/tumor": 1.0, "mean": 1.0}, {})
    monkeypatch.setattr(weak_label, "retrain", lambda *_: found)
    kept = trainer({"minutes": 1, "start": "scratch"}, book.images._datastore)  # type: ignore[attr-defined]
    assert kept["state"] == "kept back"
    assert "the model in use knows other classes; " in kept["message"] and "force=true" in kept["message"]
    assert trainer({"minutes": 1, "start": "scratch", "force": True}, book.images._datastore)["state"] == "published"  # type: ignore[attr-defined]


def test_what_is_not_worse_is_published(options: AppOptions, book: TagBook, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train(options, book, monkeypatch, {"gate/tumor": 0.8})["state"] == "published"


def test_classes_that_are_hardly_known_are_named(options: AppOptions, book: TagBook, monkeypatch: pytest.MonkeyPatch) -> None:
    known = train(options, book, monkeypatch, {"gate/tumor": 0.9, "map/tumor": 0.8})
    assert "hardly" not in known["message"]
    guessed = train(options, book, monkeypatch, {"gate/tumor": 0.9, "map/tumor": 0.4971})
    assert guessed["state"] == "published"
    assert "slices with and without tumor (AUC 0.50) are hardly told apart, so masks may lie anywhere" in guessed["message"]


def test_other_patients_are_another_run(options: AppOptions, book: TagBook, monkeypatch: pytest.MonkeyPatch) -> None:
    """They change who is held out: a run that was stopped could not be resumed, and no viewer can delete its folder."""
    book.write({"case0": {"tumor": False}}, "ann", "manual")
    folders = []

    def stopped(*arguments: Any) -> Candidate:
        folders.append(arguments[4])
        raise KeyboardInterrupt

    monkeypatch.setattr(weak_label, "retrain", stopped)
    for patient in ("one", "one", "other"):
        book.store.set_patients({"case0": patient})
        with pytest.raises(KeyboardInterrupt):
            WeakLabel(options, book, str)({"minutes": 1}, book.images._datastore)  # type: ignore[attr-defined]
    assert folders[0] == folders[1] != folders[2]


def tag_enough(book: TagBook, images: int = 5) -> None:
    """Four patients or more, half of them with all classes."""
    tags: dict[str, Any] = {f"case{number}": dict.fromkeys(CLASS_NAMES, number % 2 == 0) for number in range(images)}
    book.write(tags, "ann", "manual")


def finder(book: TagBook, failing: dict[str, Exception]) -> Callable[[str], str]:
    """Gives the files of images but those for which an error is named."""

    def find(image: str) -> str:
        if image in failing:
            raise failing[image]
        return str(book.images._datastore.get_image_uri(image))  # type: ignore[attr-defined]

    return find


def test_image_that_cannot_be_read_is_left_out_and_named(
    options: AppOptions, book: TagBook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A series of a PACS can be tagged absent before anybody has opened it: it must not keep all others from being learned from."""
    write_nifti(tmp_path / "studies" / "case4.nii.gz", head(4))
    book.images._datastore.rescan()  # type: ignore[attr-defined]
    tag_enough(book)
    learned: list[set[str]] = []
    found = Candidate(save_tiny_model(tmp_path / "candidate", seed=1), {"gate/tumor": 0.8, "mean": 0.8}, None)

    def learn(paths: dict[str, Path], tags: TagTable, *_: Any) -> Candidate:
        learned.append(set(paths))
        assert set(tags.tags) == set(paths)
        return found

    monkeypatch.setattr(weak_label, "retrain", learn)
    trainer = WeakLabel(options, book, finder(book, {"case0": VolumeError("case0: a slice is missing")}))
    stats = trainer({"minutes": 1}, None)
    assert learned == [{"case1", "case2", "case3", "case4"}]
    assert stats["state"] == "published" and stats["left_out"] == {"case0": "case0: a slice is missing"}
    assert "1 tagged image(s) left out, which cannot be read: case0 (case0: a slice is missing)" in stats["message"]
    assert "case0 is not learned from" in caplog.text
    assert book.store.tags("case0") == dict.fromkeys(CLASS_NAMES, True), "what was said of it stays"

    # Too few are left.
    broken = {f"case{number}": VolumeError("a slice is missing") for number in range(2)}
    trainer = WeakLabel(options, book, finder(book, dict(broken)))
    with pytest.raises(TooFewTagsError, match=r"1 more patient\(s\)"):
        trainer({"minutes": 1}, None)
    assert len(learned) == 1
    assert trainer.stats()["state"] == "failed" and "case0 (a slice is missing); case1 (a slice is missing)" in trainer.stats()["message"]


def test_pacs_that_does_not_answer_ends_the_training_and_nothing_is_lost(
    options: AppOptions, book: TagBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag_enough(book, 4)
    trainer = WeakLabel(options, book, finder(book, {"case1": requests.HTTPError("500 Server Error")}))
    monkeypatch.setattr(weak_label, "retrain", lambda *_: pytest.fail("it cannot be known what is readable"))
    run = trainer.folder / "run_0123456789ab"
    run.mkdir(parents=True)
    before = book.store.known()
    with pytest.raises(requests.HTTPError):
        trainer({"minutes": 1}, None)
    assert trainer.stats()["state"] == "failed" and trainer.stats()["left_out"] == {}
    assert "the DICOMweb server does not answer as expected: 500 Server Error; no tag is lost" in trainer.stats()["message"]
    assert run.is_dir() and book.store.known() == before


def test_series_that_has_grown_is_not_learned_from_with_the_tags_it_had(
    options: AppOptions, book: TagBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tags go while its file is made."""
    tag_enough(book, 4)
    seen: list[TagTable] = []

    def find(image: str) -> str:
        if image == "case0":
            book.forget("case0", "ann")
        return str(book.images._datastore.get_image_uri(image))  # type: ignore[attr-defined]

    def stopped(*arguments: Any) -> Candidate:
        seen.append(arguments[1])
        raise KeyboardInterrupt

    monkeypatch.setattr(weak_label, "retrain", stopped)
    with pytest.raises(KeyboardInterrupt):
        WeakLabel(options, book, find)({"minutes": 1}, None)
    assert set(seen[0].tags) == {"case1", "case2", "case3"}


def test_training_opens_images_and_no_label(options: AppOptions, book: TagBook, tmp_path: Path) -> None:
    """Masks of every tagged image lie in the datastore; a real training must not so much as open one."""
    datastore = book.images._datastore  # type: ignore[attr-defined]
    present: dict[str, Any] = {f"case{number}": [[1, 2]] for number in range(4)}
    book.write({image: dict.fromkeys(CLASS_NAMES, value) for image, value in present.items()}, "ann", "manual")
    for image in present:
        datastore.save_label(image, str(tmp_path / "studies" / f"{image}.nii.gz"), "final", {})
    labels = sorted(path.name for path in (tmp_path / "studies" / "labels" / "final").iterdir())
    assert labels == [f"{image}.nii.gz" for image in present]
    opened: list[str] = []
    watching = [True]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open" and isinstance(arguments[0], str | bytes | Path):
            opened.append(os.fsdecode(arguments[0]))

    sys.addaudithook(hook)  # which cannot be taken away
    try:
        request = {"start": "scratch", "stages": "classifier and diffusion", "epochs": 0.01, "force": True, "device": "cpu"}
        assert WeakLabel(options, book, datastore.get_image_uri)(request, datastore)["state"] == "published"
    finally:
        watching.clear()
    studies = [Path(path).relative_to(tmp_path / "studies") for path in opened if path.startswith(str(tmp_path / "studies"))]
    assert {Path(f"{image}.nii.gz") for image in present} <= set(studies)
    assert not [path for path in studies if path.parts[0] == "labels"]


def test_slices_are_counted_where_an_image_may_be_present_throughout(book: TagBook) -> None:
    present: dict[str, Any] = {"case0": [[0, 2]], "case1": [[1, 2]], "picture": [[0, 0]], "case2": False}
    book.write({image: {"tumor": value} for image, value in present.items()}, "ann", "manual")
    table = book.table()
    assert set(table.num_slices) == {"case0", "picture"}
    assert table.num_slices["picture"] == 1
    assert table.patients_with("tumor", 0) == {"case0", "case1", "case2"}

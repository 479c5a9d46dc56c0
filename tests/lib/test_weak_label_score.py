"""The scoring method: the numbers of training's own held-out scores, whatever else lies among the images."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app_cdm.training.held_out import TooFewTagsError, held_out_scores, load_held_out, split_patients
from lib.datastore import FolderDatastore
from lib.models import ModelMissingError, ModelStore
from lib.options import AppOptions
from lib.scoring.weak_label import WeakLabelScore
from lib.server.errors import UnknownNameError
from lib.tags.book import TagBook
from lib.tags.images import DatastoreImages
from lib.tags.store import TagStore
from lib.turns import StoppedError
from tests.host.studies import head, write_nifti
from tests.host.tiny_model import CLASS_NAMES, save_tiny_model

# diffusers leaves closing the weights, which are read without a memory map, to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")

NAMES = ("aneurysm", *CLASS_NAMES)  # one that the model does not know, and before its own
IMAGES = tuple(f"case{number}" for number in range(6))


@pytest.fixture
def book(tmp_path: Path) -> Iterator[TagBook]:
    (tmp_path / "studies").mkdir()
    for seed, name in enumerate(IMAGES):
        write_nifti(tmp_path / "studies" / f"{name}.nii.gz", head(seed))
    datastore = FolderDatastore(tmp_path / "studies", tmp_path / "cache", auto_reload=False)
    store = TagStore(tmp_path / "tags.sqlite")
    yield TagBook(store, DatastoreImages(datastore), lambda: NAMES)
    store.close()


@pytest.fixture
def models(tmp_path: Path) -> ModelStore:
    save_tiny_model(tmp_path / "models" / "tiny", methods=["student"])
    return ModelStore(AppOptions(tmp_path / "models", device="cpu"))


def tag_all(book: TagBook) -> None:
    tags: dict[str, Any] = {image: {name: [[1, 2]] for name in NAMES} for image in IMAGES}
    book.write(tags, "ann", "manual")


def score(book: TagBook, models: ModelStore, stop: threading.Event | None = None) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    result = WeakLabelScore(models, book).score(book.images._datastore, stop or threading.Event(), said.append)  # type: ignore[attr-defined]
    return result, said


def test_scores_are_those_of_training_and_an_unusable_image_is_named(book: TagBook, models: ModelStore, tmp_path: Path) -> None:
    tag_all(book)
    held_out = split_patients(book.table(), 0.2)[1]
    assert 2 <= len(held_out.tags) < len(IMAGES)
    pipeline = models.pipeline()

    def by_hand(names: list[str]) -> dict[str, float]:
        paths = {name: tmp_path / "studies" / f"{name}.nii.gz" for name in names}
        tags = replace(held_out, class_names=pipeline.class_names).subset(names)
        return held_out_scores(pipeline, load_held_out(paths, tags, pipeline.description.preprocess))

    result, said = score(book, models)
    found = result["held_out"]
    assert found["scores"] == pytest.approx(by_hand(list(held_out.tags)), abs=1e-6)
    assert set(found["scores"]) == {"mean", *(f"{kind}/{name}" for kind in ("gate", "map") for name in CLASS_NAMES)}
    assert (found["patients"], found["images"], found["unusable"]) == (len(held_out.tags), len(held_out.tags), {})
    assert result["model_version"] == pipeline.model_version
    assert said and "gate/tumor" in said[0]

    broken, *rest = held_out.tags
    (tmp_path / "studies" / f"{broken}.nii.gz").write_text("this is not an image")
    found = score(book, models)[0]["held_out"]
    assert found["scores"] == pytest.approx(by_hand(rest), abs=1e-6)
    assert set(found["unusable"]) == {broken} and found["images"] == len(rest)


def test_an_image_that_left_the_pacs_is_named(book: TagBook, models: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    tag_all(book)
    datastore = book.images._datastore  # type: ignore[attr-defined]
    gone, *rest = split_patients(book.table(), 0.2)[1].tags
    fetch = datastore.get_image_uri

    def fetch_or_fail(image: str) -> str:
        if image == gone:
            raise UnknownNameError("image", image, hint="gone")
        return str(fetch(image))

    monkeypatch.setattr(datastore, "get_image_uri", fetch_or_fail)
    found = score(book, models)[0]["held_out"]
    assert "gone" in found["unusable"][gone] and found["images"] == len(rest)


def test_what_is_missing_is_said_before_anything_runs(book: TagBook, models: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(TooFewTagsError, match="4 more patient"):
        WeakLabelScore(models, book).check()
    with pytest.raises(ModelMissingError, match="no weights"):
        WeakLabelScore(ModelStore(AppOptions(tmp_path / "none", device="cpu")), book).check()


def test_stop_ends_it(book: TagBook, models: ModelStore) -> None:
    tag_all(book)
    stop = threading.Event()
    stop.set()
    with pytest.raises(StoppedError):
        score(book, models, stop)

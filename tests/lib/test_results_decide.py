"""Accept and reject when something stops in between: what is written again is the same, and never twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app_cdm.data.volume import read_volume
from lib.datastore import FolderDatastore
from lib.results.decide import Judge, label_info
from lib.results.errors import ResultConflictError
from lib.results.images import digest_of, stamp_of
from lib.results.record import Source, new_id
from lib.results.store import ResultStore
from lib.server.errors import UnknownNameError
from lib.tags.book import TagBook
from lib.tags.datastore import add_tags
from lib.tags.images import DatastoreImages
from lib.tags.store import TagStore
from tests.host.studies import head, write_nifti
from tests.lib.test_results_store import geometry

# ITK's binary modules warn while they load, and die if the warning is made an error.
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")


class Killed(BaseException):
    """The process ends here."""


class Desk:
    """A folder with one image, its tags and results, as a server that starts finds them."""

    def __init__(self, folder: Path, classes: tuple[str, ...] = ("edema", "tumor")) -> None:
        studies = folder / "studies"
        if not studies.is_dir():
            studies.mkdir()
            write_nifti(studies / "case.nii.gz", head(1))
        datastore = FolderDatastore(studies, folder / "cache", auto_reload=False)
        self.book = TagBook(TagStore(folder / "tags.sqlite"), DatastoreImages(datastore), lambda: classes)
        self.datastore = add_tags(datastore, self.book, folder / "codes.json")
        self.results = ResultStore(folder / "results")
        self.judge = Judge(self.results, self.datastore, self.book)
        self.label = studies / "labels" / "final" / "case.nii.gz"

    def make(self, labels: dict[str, int] | None = None) -> str:
        image = read_volume(Path(self.datastore.get_image_uri("case")))
        mask = np.zeros(image.array.shape, dtype=np.uint8)
        mask[3:9, 4:8, 2:5] = 2
        result_id = new_id()
        reply: dict[str, Any] = {"result": result_id, "image": "case", "model": "student", "model_version": "v1", "created": "now"}
        reply["labels"] = labels or {"edema": 1, "tumor": 2}
        source = Source(stamp_of(self.datastore, "case"), digest_of(image))
        kept = type(image)(mask, image.affine, image.kind, image.path, image.nifti_header)
        self.results.add(result_id, reply, source, kept, {}, geometry())
        return result_id

    def actions(self) -> list[int]:
        return [event.action for event in self.book.store.history("case")]


@pytest.mark.parametrize("step", ["label", "tags", "decision"])
def test_accept_after_a_kill_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    desk = Desk(tmp_path)
    result = desk.make()
    target, name = {"label": (desk.datastore, "save_label"), "tags": (desk.book, "write"), "decision": (desk.results, "decide")}[step]

    def killed(*arguments: Any, **options: Any) -> None:
        raise Killed

    monkeypatch.setattr(target, name, killed)
    with pytest.raises(Killed):
        desk.judge.accept(result, "ann")
    assert desk.label.is_file() == (step != "label") and bool(desk.actions()) == (step == "decision")
    again = Desk(tmp_path)
    assert again.results.get(result).decision is None
    answer = again.judge.accept(result, "ann")
    assert answer == {"image": "case", "label": "case", "tags": {"edema": False, "tumor": [[2, 4]]}}
    assert again.book.tags("case") == answer["tags"] and set(again.actions()) == {1}
    assert np.array_equal(read_volume(again.label).array, read_volume(again.results.mask_file(result)).array)
    assert Desk(tmp_path).judge.accept(result, "ben") == answer and set(again.actions()) == {1}


def test_a_result_without_its_mask_is_unknown(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    result = desk.make()
    desk.results.mask_file(result).unlink()
    with pytest.raises(UnknownNameError, match="run again"):
        desk.judge.accept(result, "ann")
    assert not desk.label.exists() and not desk.actions()


def test_only_classes_that_can_be_tagged_are(tmp_path: Path) -> None:
    desk = Desk(tmp_path, ("tumor", "liver"))
    assert desk.judge.accept(desk.make(), "ann")["tags"] == {"tumor": [[2, 4]]}
    assert desk.judge.reject(desk.make(), "ann")["tags"] == {"tumor": False}
    stranger = Desk(tmp_path, ("liver",))
    result = stranger.make()
    before = desk.label.stat().st_mtime_ns
    for decide in (stranger.judge.accept, stranger.judge.reject):
        with pytest.raises(ResultConflictError, match="none can be tagged"):
            decide(result, "ann")
    assert desk.label.stat().st_mtime_ns == before and stranger.results.get(result).decision is None


def test_a_refused_label_leaves_the_result_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(tmp_path)
    result = desk.make()

    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError("the PACS does not answer")

    monkeypatch.setattr(desk.datastore, "save_label", refuse)
    with pytest.raises(OSError):
        desk.judge.accept(result, "ann")
    assert not desk.actions() and desk.results.get(result).decision is None
    assert desk.judge.reject(result, "ann") == {"image": "case", "tags": {"edema": False, "tumor": False}}


def test_names_of_a_label_stand_in_the_order_of_its_values(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    info = label_info(desk.results.get(desk.make({"tumor": 2})), "ann")
    assert info["label_info"] == [{}, {"name": "tumor"}] and info["model_version"] == "v1"
    assert desk.judge.accept(desk.make({"tumor": 2}), "ann")["tags"] == {"tumor": [[2, 4]]}

"""The infer task as it writes: maps of every class under a tag of its own, and no file that is left behind."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app_cdm.data.volume import read_volume
from app_cdm.pipeline import CDMPipeline
from lib.datastore import FolderDatastore
from lib.infers import segmentation
from lib.infers.segmentation import SegmentationTask, map_tag, warnings_of
from lib.models import ModelStore
from lib.options import AppOptions
from lib.server.checks import check_tag
from tests.host.studies import head, write_nifti
from tests.host.tiny_model import save_tiny_model

# diffusers leaves closing the weights, which are read without a memory map, to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")

CLASS_NAMES = ("a b", "a_b", "отёк", "肿瘤", "x" * 70, "x" * 71)


@pytest.fixture
def datastore(tmp_path: Path) -> FolderDatastore:
    (tmp_path / "studies").mkdir()
    write_nifti(tmp_path / "studies" / "case.nii.gz", head())
    return FolderDatastore(tmp_path / "studies", tmp_path / "cache", auto_reload=False)


@pytest.fixture
def task(datastore: FolderDatastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SegmentationTask:
    save_tiny_model(tmp_path / "models" / "tiny", methods=["student"], class_names=sorted(CLASS_NAMES))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return SegmentationTask("student", ModelStore(AppOptions(tmp_path / "models", device="cpu")), datastore)


def request(datastore: FolderDatastore, **params: Any) -> dict[str, Any]:
    return {"image": datastore.get_image_uri("case"), "image_id": "case", **params}


def test_maps_of_all_classes_are_kept_apart(task: SegmentationTask, datastore: FolderDatastore, tmp_path: Path) -> None:
    file, reply = task(request(datastore, store_saliency=True, store_uncertainty=True))
    Path(file).unlink()
    stored = [*reply["saliency"], *reply["uncertainty"]]
    assert len({item["tag"] for item in stored}) == len(stored) == 2 * len(CLASS_NAMES)
    for item in stored:
        check_tag(item["tag"])
        assert datastore.get_label_info("case", item["tag"])["class"] == item["class"]
    maps = [read_volume(datastore.get_label_uri("case", item["tag"])).array for item in stored]
    assert not any(np.array_equal(one, other) for number, one in enumerate(maps) for other in maps[:number])
    assert not list((tmp_path / "tmp").iterdir())


def test_masks_of_a_class_that_is_hardly_known_come_with_a_warning(datastore: FolderDatastore, tmp_path: Path) -> None:
    scores = {"gate/edema": 0.98, "map/edema": 0.81, "gate/tumor": 0.9, "map/tumor": 0.4971, "mean": 0.8}
    save_tiny_model(tmp_path / "models" / "tiny", training={"held_out": scores})
    task = SegmentationTask("student", ModelStore(AppOptions(tmp_path / "models", device="cpu")), datastore)
    warning = "masks may lie anywhere (held-out slices hardly told apart, AUC 0.50)"
    for prompt, expected in (([], {"tumor": warning}), ([2], {"tumor": warning}), ([1], None)):
        file, reply = task(request(datastore, label_prompt=prompt))
        Path(file).unlink()
        assert reply.get("warnings") == expected
    assert task.info()["description"].endswith(f"not a medical device; tumor: {warning}")


@pytest.mark.parametrize("record", [{}, {"held_out": {"mean": 0.2}}, {"held_out": [1]}, {"held_out": {"map/tumor": None}}])
def test_a_model_that_says_nothing_of_held_out_tags_brings_no_warning(record: dict[str, Any], tmp_path: Path) -> None:
    assert not warnings_of(CDMPipeline.from_pretrained(save_tiny_model(tmp_path / "tiny", training=record)))


@pytest.mark.parametrize("name", ["tumor", "a_b", "grade-3", "v1.2", "x" * 55])
def test_a_name_that_can_be_a_tag_is_one(name: str) -> None:
    assert map_tag("saliency", name) == f"saliency_{name}"


def test_tags_of_other_names_say_what_can_be_said() -> None:
    assert map_tag("saliency", "edema, old").startswith("saliency_edema_old_")
    assert len(map_tag("uncertainty", "x" * 64)) == 64


def test_a_mask_that_finds_no_room_leaves_no_file(
    task: SegmentationTask, datastore: FolderDatastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(segmentation, "write_mask", full)
    with pytest.raises(OSError, match="No space"):
        task(request(datastore))
    assert not list((tmp_path / "tmp").iterdir())

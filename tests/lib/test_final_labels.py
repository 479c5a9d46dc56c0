"""Dice against final labels: the label on the image's grid, segments by name, what is undefined or cannot be compared."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
from monailabel.interfaces.datastore import Datastore

from app_cdm.data.grid import Volume, VolumeError
from app_cdm.data.volume import read_volume, write_mask
from app_cdm.pipeline import CDMPipeline
from lib.datastore import FolderDatastore
from lib.infers.run import run_inference
from lib.infers.segmentation import segmentation_tasks
from lib.models import ModelStore
from lib.options import AppOptions
from lib.results.errors import NoSpaceError
from lib.scoring.final_labels import score_final_labels
from lib.server.errors import UnknownNameError
from lib.tags.mask import on_image_grid
from lib.turns import Turns
from tests.host.studies import AFFINE, SHAPE, head, write_nifti
from tests.host.tiny_model import CLASS_NAMES, save_tiny_model

# diffusers leaves closing the weights, which are read without a memory map, to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")

IMAGE = Volume(head().astype(np.float32), AFFINE)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> CDMPipeline:
    return CDMPipeline.from_pretrained(save_tiny_model(tmp_path_factory.mktemp("model") / "tiny", methods=["student"]))


@pytest.fixture
def datastore(tmp_path: Path) -> FolderDatastore:
    folder = tmp_path / "studies"
    folder.mkdir()
    for seed in range(2):
        write_nifti(folder / f"case{seed}.nii.gz", head(seed))
    return FolderDatastore(folder, tmp_path / "cache", auto_reload=False)


def submit(datastore: Datastore, image: str, mask: np.ndarray, folder: Path, info: dict[str, Any] | None = None) -> None:
    path = folder / "label.nii.gz"
    write_mask(mask.astype(np.uint8), read_volume(datastore.get_image_uri(image)), path)
    datastore.save_label(image, str(path), "final", info or {})


def fail_on(datastore: FolderDatastore, failing: str, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error when an image is fetched."""
    fetch = datastore.get_image_uri

    def fetch_or_fail(image: str) -> str:
        if image == failing:
            raise error
        return fetch(image)

    monkeypatch.setattr(datastore, "get_image_uri", fetch_or_fail)


def run(pipeline: CDMPipeline, datastore: Datastore, held_out: tuple[str, ...] = ()) -> dict[str, Any]:
    lock = threading.Lock()
    return score_final_labels(pipeline, datastore, CLASS_NAMES, held_out, Turns(lambda: lock), lambda line: None)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_turned_flipped_and_cropped_labels_lie_on_the_image(order: tuple[int, int, int]) -> None:
    whole = np.zeros(SHAPE, dtype=np.uint8)
    whole[5:9, 20:30, 2:5], whole[6, 22, 3] = 1, 2
    part, corner = whole[3:30, 10:40, 1:6][::-1], np.eye(4)
    corner[:3, 3], corner[0, 0], corner[0, 3] = (3, 10, 1), -1, 29
    turned = np.transpose(part, order)
    affine = (AFFINE @ corner)[:, [*order, 3]]
    assert np.array_equal(on_image_grid(Volume(turned.astype(np.float32), affine), IMAGE), whole)


@pytest.mark.parametrize(("change", "words"), [((2.0, 0.0), "not those of the image"), ((1.0, 500.0), "outside the image")])
def test_labels_elsewhere_or_of_other_voxels_are_refused(change: tuple[float, float], words: str) -> None:
    mask = np.ones((8, 8, 3), dtype=np.float32)
    affine = AFFINE @ np.diag([change[0], 1, 1, 1])
    affine[0, 3] += change[1]
    with pytest.raises(VolumeError, match=words):
        on_image_grid(Volume(mask, affine), IMAGE)


def test_a_label_that_equals_the_mask_has_dice_1_and_its_complement_0(
    pipeline: CDMPipeline, datastore: FolderDatastore, tmp_path: Path
) -> None:
    masks = {f"case{seed}": pipeline.segment(read_volume(datastore.get_image_uri(f"case{seed}"))).mask for seed in range(2)}
    assert all((mask == value).any() for mask in masks.values() for value in (1, 2))
    swapped = np.array([0, 2, 1], dtype=np.uint8)[masks["case0"]]
    submit(datastore, "case0", swapped, tmp_path, {"label_info": [{"name": "tumor"}, {"name": "edema"}]})
    submit(datastore, "case1", np.where(masks["case1"] == 1, 2, 1), tmp_path)
    found = run(pipeline, datastore, held_out=("case1",))
    assert found["method"] == "student"
    assert found["images"]["case0"] == {"dice": pytest.approx({"edema": 1.0, "tumor": 1.0}), "is_held_out": False}
    assert found["images"]["case1"] == {"dice": {"edema": 0.0, "tumor": 0.0}, "is_held_out": True}
    expected = {"mean": 0.5, "n": 2, "mean_held_out": 0.0, "n_held_out": 1, "num_undefined": 0}
    assert found["dice"] == {"edema": pytest.approx(expected), "tumor": pytest.approx(expected)}


def test_a_stored_mask_of_a_model_with_fewer_classes_keeps_their_names(datastore: FolderDatastore, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "models" / "tumors", methods=["student"], class_names=["tumor"])
    tasks = segmentation_tasks(ModelStore(AppOptions(folder.parent, device="cpu")), datastore)
    request = {"model": "student", "image": "case0", "save_label": True, "label_tag": "final"}
    Path(run_inference(tasks, request, datastore)["file"]).unlink()
    assert datastore.get_label_info("case0", "final")["label_info"] == [{"name": "tumor"}]
    pipeline = CDMPipeline.from_pretrained(folder)
    assert pipeline.segment(read_volume(datastore.get_image_uri("case0"))).mask.any()
    assert run(pipeline, datastore)["images"]["case0"]["dice"] == {"tumor": 1.0}


def test_what_is_undefined_is_counted_and_a_damaged_label_does_not_end_the_rest(
    pipeline: CDMPipeline, datastore: FolderDatastore, tmp_path: Path
) -> None:
    settings = pipeline.description.segmentation
    nothing = pipeline.with_settings(settings.replace(mask=settings.mask.replace(gate_threshold=1.0)))
    assert not nothing.segment(IMAGE).mask.any()
    submit(datastore, "case0", np.zeros(SHAPE), tmp_path)
    submit(datastore, "case1", np.ones(SHAPE), tmp_path)
    Path(datastore.get_label_uri("case1", "final")).write_text("no label")
    found = run(nothing, datastore)
    assert np.isnan(found["dice"]["tumor"]["mean"]) and found["dice"]["tumor"]["num_undefined"] == 1
    assert "error" in found["images"]["case1"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UnknownNameError("image", "case0", hint="gone"), "gone"),
        (requests.HTTPError("500"), "DICOMweb"),
        (torch.OutOfMemoryError(), "memory"),
    ],
    ids=["left the PACS", "PACS fails", "too large for the GPU"],
)
def test_an_image_that_fails_is_named_and_the_others_are_scored(
    pipeline: CDMPipeline, datastore: FolderDatastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    for image in ("case0", "case1"):
        submit(datastore, image, np.ones(SHAPE), tmp_path)
    fail_on(datastore, "case0", error, monkeypatch)
    images = run(pipeline, datastore)["images"]
    assert words in images["case0"]["error"] and "dice" in images["case1"]


def test_a_full_disk_ends_it(pipeline: CDMPipeline, datastore: FolderDatastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submit(datastore, "case0", np.ones(SHAPE), tmp_path)
    fail_on(datastore, "case0", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), monkeypatch)
    with pytest.raises(NoSpaceError):
        run(pipeline, datastore)

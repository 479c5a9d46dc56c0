"""A batch goes on after an image that fails, and ends where no other would fare better."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from monailabel.interfaces.exception import ImageNotFoundException

from app_cdm.config import SettingsError
from app_cdm.data.volume import VolumeError
from lib.datastore import FolderDatastore
from lib.infers.batch import BatchInfer
from lib.models import ModelMissingError
from lib.results.errors import NoSpaceError
from lib.server.errors import UnknownNameError
from tests.host.studies import head, write_nifti

IMAGES = ("case0", "case1", "case2")
FAILING = "case1"


@pytest.fixture
def datastore(tmp_path: Path) -> FolderDatastore:
    (tmp_path / "studies").mkdir()
    for seed, name in enumerate(IMAGES):
        write_nifti(tmp_path / "studies" / f"{name}.nii.gz", head(seed))
    return FolderDatastore(tmp_path / "studies", tmp_path / "cache", auto_reload=False)


def run(datastore: FolderDatastore, folder: Path, error: Exception) -> dict[str, Any]:
    """A batch of which the inference of one image raises an error."""

    def infer(request: dict[str, Any], _: FolderDatastore) -> dict[str, Any]:
        if request["image"] == FAILING:
            raise error
        mask = folder / f"mask_{request['image']}"
        mask.touch()
        return {"label": request["image"], "file": str(mask)}

    results = BatchInfer()({"model": "student", "images": "all"}, datastore, infer)
    assert not list(folder.glob("mask_*"))
    return results


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (VolumeError("all voxels are NaN"), "NaN"),
        (UnknownNameError("image", FAILING, hint="gone"), "gone"),
        (ImageNotFoundException(f"Image {FAILING} not found"), "not found"),
        (SettingsError("result_extension = '.png': the image has 6 slices"), ".png"),
        (requests.HTTPError("500 Server Error"), "DICOMweb server"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES)), "denied"),
        (torch.OutOfMemoryError("CUDA out of memory"), "too little free memory"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_is_wrong_with_one_image_is_told_and_the_others_are_done(
    datastore: FolderDatastore, tmp_path: Path, error: Exception, words: str
) -> None:
    results = run(datastore, tmp_path, error)
    assert {image: set(answer) for image, answer in results.items()} == {"case0": {"label"}, "case1": {"error"}, "case2": {"label"}}
    assert words in results[FAILING]["error"]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ModelMissingError("no weights"), ModelMissingError),
        (NoSpaceError("the server's disk is full"), NoSpaceError),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), NoSpaceError),
        (TypeError("a fault of ours"), TypeError),
    ],
    ids=lambda value: str(value) if isinstance(value, Exception) else "",
)
def test_what_is_wrong_with_all_ends_it(datastore: FolderDatastore, tmp_path: Path, error: Exception, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        run(datastore, tmp_path, error)

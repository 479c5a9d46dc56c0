"""Images and labels of a folder: whole or as before, and nothing of another image or of an earlier label comes back."""

from __future__ import annotations

import asyncio
import io
import json
import os
import resource
import shutil
import signal
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest
from monailabel.interfaces.exception import LabelNotFoundException

from app_cdm.data.volume import Volume, read_volume, write_mask
from lib.datastore import FolderDatastore, survey
from lib.results.errors import NoSpaceError
from lib.server.dataset import download_dataset
from lib.tags.book import TagBook
from lib.tags.datastore import add_tags
from lib.tags.images import DatastoreImages
from lib.tags.store import TagStore
from tests.data.dicom_files import NORMAL, STEP_MM, write_series
from tests.host.studies import AFFINE, head, write_nifti


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    (tmp_path / "studies").mkdir()
    write_nifti(tmp_path / "studies" / "case.nii.gz", head())
    return tmp_path / "studies"


@pytest.fixture
def datastore(studies: Path, tmp_path: Path) -> FolderDatastore:
    return FolderDatastore(studies, tmp_path / "cache", auto_reload=False)


def label(folder: Path, value: int, suffix: str = ".nii.gz") -> str:
    image = read_volume(write_nifti(folder / "grid.nii.gz", head()))
    path = folder / f"label{value}{suffix}"
    write_mask(np.full(image.array.shape, value, np.uint8), image, path)
    return str(path)


def noise(folder: Path, suffix: str = ".nii.gz") -> str:
    """An image that compression does not make small."""
    voxels = np.random.default_rng(0).integers(0, 256, (40, 40, 20), np.uint8)
    write_mask(voxels, Volume(voxels.astype(np.float32), AFFINE), folder / f"noise{suffix}")
    return str(folder / f"noise{suffix}")


def files(studies: Path) -> dict[str, bytes]:
    """What lies in the folder, but for the index."""
    return {str(path.relative_to(studies)): path.read_bytes() for path in studies.rglob("*.*") if path.is_file() and path.suffix != ".json"}


@contextmanager
def full_disk() -> Iterator[None]:
    """The kernel refuses to let files grow, which ends like a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal_before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, signal_before)


def test_a_full_disk_leaves_image_and_label_before(datastore: FolderDatastore, studies: Path, tmp_path: Path) -> None:
    datastore.save_label("case", label(tmp_path, 1), "final", {"note": "kept"})
    before, index = files(studies), datastore.json()
    large = noise(tmp_path)
    with full_disk():
        for image_id in ("case", "new"):
            with pytest.raises(NoSpaceError, match="full"):
                datastore.add_image(image_id, large, {})
        with pytest.raises(NoSpaceError, match="full"):
            datastore.save_label("case", large, "final", {})
    assert files(studies) == before and datastore.json() == index
    datastore.rescan()
    assert datastore.json() == index


@pytest.mark.parametrize("what", ["image", "label"])
def test_a_kill_leaves_image_and_label_before(datastore: FolderDatastore, studies: Path, tmp_path: Path, what: str) -> None:
    datastore.save_label("case", label(tmp_path, 1), "final", {})
    before, index, other = files(studies), datastore.json(), noise(tmp_path)
    child = os.fork()
    if child == 0:  # ends where the new file is written, but not yet on the disk
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        try:
            datastore.add_image("case", other, {}) if what == "image" else datastore.save_label("case", other, "final", {})
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert files(studies).items() >= before.items()
    again = FolderDatastore(studies, tmp_path / "cache", auto_reload=False)
    assert again.json() == index, "what the kill left is taken for an image or a label"


def test_a_label_lies_under_one_suffix_and_does_not_come_back(datastore: FolderDatastore, studies: Path, tmp_path: Path) -> None:
    final = studies / "labels" / "final"
    for number, suffix in enumerate((".nii.gz", ".nrrd", ".nii", ".nii.gz"), start=1):
        datastore.save_label("case", label(tmp_path, number, suffix), "final", {})
        assert [path.name for path in final.iterdir()] == [f"case{suffix}"]
        assert (read_volume(datastore.get_label_uri("case", "final")).array == number).all()
    shutil.copy(label(tmp_path, 5, ".nrrd"), final / "case.nrrd")  # as servers before this one left it
    shutil.copy(label(tmp_path, 5, ".nrrd"), final / "case.more.nrrd")
    datastore.remove_label("case", "final")
    assert [path.name for path in final.iterdir()] == ["case.more.nrrd"]
    datastore.rescan()
    assert not datastore.get_labels_by_image_id("case")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_another_image_under_an_id_inherits_nothing(datastore: FolderDatastore, studies: Path, tmp_path: Path, suffix: str) -> None:
    datastore.save_label("case", label(tmp_path, 1), "final", {})
    datastore.save_label("case", label(tmp_path, 2, ".nrrd"), "original", {})
    shutil.copy(label(tmp_path, 3, ".nii"), studies / "labels" / "original" / "case.nii")
    other = noise(tmp_path, suffix)
    assert datastore.add_image("case", other, {}) == "case"
    assert set(files(studies)) - {".lock"} == {f"case{suffix}"}
    for store in (datastore, FolderDatastore(studies, tmp_path / "cache", auto_reload=False)):
        store.rescan()
        assert store.get_labels_by_image_id("case") == {}
        assert Path(store.get_image_uri("case")).read_bytes() == Path(other).read_bytes()


def test_the_same_image_once_more_keeps_its_labels(datastore: FolderDatastore, studies: Path, tmp_path: Path) -> None:
    """Slicer uploads a volume from its own disk each time before it submits a label."""
    datastore.save_label("case", label(tmp_path, 1), "final", {"note": "kept"})
    before = files(studies)
    again = write_nifti(tmp_path / "again.nii", head())
    assert datastore.add_image("case", str(again), {"note": "again"}) == "case"
    assert files(studies) == before
    assert datastore.get_label_info("case", "final")["note"] == "kept" and datastore.get_image_info("case")["note"] == "again"


@pytest.mark.parametrize("noticed", ["reload", "use", "restart", "tagging"])
def test_dicom_series_that_has_grown_keeps_neither_labels_nor_tags(tmp_path: Path, noticed: str) -> None:
    (tmp_path / "studies").mkdir()
    write_series(tmp_path / "studies" / "series", 5, series="1.2.1")
    store = TagStore(tmp_path / "tags.sqlite")

    def start() -> tuple[FolderDatastore, TagBook]:
        datastore = FolderDatastore(tmp_path / "studies", tmp_path / "cache", auto_reload=False)
        book = TagBook(store, DatastoreImages(datastore), lambda: ("edema", "tumor"))
        add_tags(datastore, book, tmp_path / "codes.json")
        return datastore, book

    datastore, book = start()
    book.write({"1.2.1": {"tumor": [[0, 1]], "edema": False}}, "ann", "manual")
    image = read_volume(datastore.get_image_uri("1.2.1"))
    write_mask(np.ones(image.array.shape, np.uint8), image, tmp_path / "label.nii.gz")
    datastore.save_label("1.2.1", str(tmp_path / "label.nii.gz"), "final", {})
    datastore.rescan()
    for file in (tmp_path / "studies" / "series").iterdir():
        os.utime(file)  # a copy of the same, as far as one can see without reading it
    datastore.get_image_uri("1.2.1")
    assert book.store.tags("1.2.1") == {"edema": False, "tumor": [[0, 1]]} and "1.2.1" in datastore.labelled()

    write_series(tmp_path / "more", 1, series="1.2.1")
    for file in (tmp_path / "more").iterdir():
        added = pydicom.dcmread(file)
        added.ImagePositionPatient = [float(value) for value in np.array(added.ImagePositionPatient, dtype=float) - STEP_MM * NORMAL]
        added.save_as(tmp_path / "studies" / "series" / "added")
    if noticed == "restart":
        datastore, book = start()
    elif noticed == "reload":
        datastore.rescan()
    else:
        datastore._series, datastore.left_out = survey(tmp_path / "studies")
    if noticed == "tagging":
        book.write({"1.2.1": {"tumor": [[1, 5]]}}, "ann", "manual")
    elif noticed != "reload":
        datastore.get_image_uri("1.2.1")
    assert book.store.tags("1.2.1") == {"edema": None, "tumor": [[1, 5]] if noticed == "tagging" else None}
    assert not list((tmp_path / "studies" / "labels").rglob("1.2.1*"))
    assert read_volume(datastore.get_image_uri("1.2.1")).array.shape == (5, 7, 6)
    store.close()


BAD_NAMES = (b"caf\xe9.nii.gz", b"._case.nii.gz", b".hidden.nii.gz", b"a\nb.nii.gz", b"a\\b.nii.gz", b"x" * 201 + b".nii.gz")


def test_files_whose_names_cannot_be_ids_are_left_out_and_told(studies: Path, tmp_path: Path) -> None:
    for folder in (studies, studies / "labels" / "final"):
        folder.mkdir(parents=True, exist_ok=True)
        for name in BAD_NAMES:
            shutil.copy(os.fsencode(studies / "case.nii.gz"), os.path.join(os.fsencode(folder), name))
    datastore = FolderDatastore(studies, tmp_path / "cache", auto_reload=False)
    assert datastore.list_images() == ["case"]
    json.dumps([datastore.json(), datastore.status()], ensure_ascii=False).encode()
    left_out = datastore.status()["left_out"]
    assert set(left_out) == {"caf\\xe9.nii.gz", *(name.decode() for name in BAD_NAMES[1:])}
    assert all("cannot be an image id" in why for why in left_out.values())
    for name in BAD_NAMES:
        os.unlink(os.path.join(os.fsencode(studies), name))
    datastore.rescan()
    assert "left_out" not in datastore.status()


def downloaded(app: Any) -> set[str]:
    """Names in the ZIP."""

    async def content() -> bytes:
        return b"".join([chunk async for chunk in download_dataset(app, {"limit_cases": None}).body_iterator])  # type: ignore[misc]

    with zipfile.ZipFile(io.BytesIO(asyncio.run(content()))) as archive:
        return set(archive.namelist())


def test_download_passes_over_labels_that_are_gone_and_takes_old_files(studies: Path, tmp_path: Path) -> None:
    write_nifti(studies / "gone.nii.gz", head())
    os.utime(studies / "case.nii.gz", (0, 0))
    datastore = FolderDatastore(studies, tmp_path / "cache", auto_reload=False)
    app: Any = SimpleNamespace(datastore=lambda: datastore)
    for image_id in ("case", "gone"):
        datastore.save_label(image_id, label(tmp_path, 1), "final", {})
    (studies / "labels" / "final" / "gone.nii.gz").unlink()

    assert downloaded(app) == {"image/case.nii.gz", "label/case.nii.gz", "metadata.json"}
    (studies / "labels" / "final" / "case.nii.gz").unlink()
    with pytest.raises(LabelNotFoundException, match="no image has a final label"):
        downloaded(app)


def test_a_label_that_goes_while_the_others_are_downloaded(
    datastore: FolderDatastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datastore.save_label("case", label(tmp_path, 1), "final", {})
    found = datastore.datalist()
    monkeypatch.setattr(os.path, "isfile", lambda _: True)
    missing = {"image": str(write_nifti(tmp_path / "gone.nii.gz", head())), "label": str(tmp_path / "labels" / "gone.nii.gz")}
    app: Any = SimpleNamespace(datastore=lambda: SimpleNamespace(datalist=lambda: [missing, *found], json=datastore.json))
    assert downloaded(app) >= {"image/case.nii.gz", "label/case.nii.gz", "metadata.json"}


def test_folder_of_labels_that_is_gone_is_empty(datastore: FolderDatastore, studies: Path, tmp_path: Path) -> None:
    shutil.rmtree(studies / "labels")
    datastore.rescan()
    assert datastore.add_image("case", noise(tmp_path), {}) == "case"
    datastore.remove_image("case")
    assert datastore.list_images() == []

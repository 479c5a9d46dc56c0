"""The datastore over a DICOMweb server: whole series through our reader, bad ones refused and left out, patients by Patient ID."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import requests
from monailabel.datastore.dicom import DICOMwebClientX, DICOMWebDatastore

from app_cdm.data.volume import VolumeError, read_volume, write_mask
from lib.dicomweb.datastore import GRIDS, PacsDatastore, mend_pacs
from lib.server.errors import UnknownNameError
from lib.tags.book import TagBook
from lib.tags.datastore import add_tags
from lib.tags.images import DatastoreImages
from lib.tags.record import StoredTag
from lib.tags.store import TagStore
from tests.data.dicom_files import NORMAL, STEP_MM, expected_affine, plane, write_frames, write_series
from tests.host.dicomweb_process import DicomWeb

# ITK's binary modules warn while they load, and die if the warning is made an error.
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")
load: Any = nib.load
GOOD, FRAMES, GAP = "1.2.1", "1.2.2", "1.3.1"


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[DicomWeb]:
    folder = tmp_path / "pacs"
    write_series(folder / GOOD, 5, series=GOOD, PatientID="SECRET-1")
    write_series(folder / GAP, 7, series=GAP, PatientID="SECRET-1", skip=(3,))
    frames = np.arange(6 * 7 * 5).reshape(6, 7, 5)
    write_frames(folder / "frames", frames, [plane(index) for index in range(6)], series=FRAMES, PatientID="SECRET-2")
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        path.rename(path.with_name(f"IM_{path.parent.name}_{path.name}"))
    server = DicomWeb(folder)
    yield server
    server.stop()


@pytest.fixture
def datastore(pacs: DicomWeb, tmp_path: Path) -> Iterator[PacsDatastore]:
    client = DICOMwebClientX(url=pacs.url)
    yield mend_pacs(DICOMWebDatastore(client, {"Modality": "MR"}, str(tmp_path / "cache")), ["MR"], lambda: ["tumor"])


def cached(datastore: PacsDatastore) -> set[str]:
    """What lies in the cache but for the host's own files."""
    return {path.name for path in Path(datastore._datastore.image_path()).iterdir() if path.name.startswith((".fetch", ".add", "1."))}


def test_series_is_converted_on_its_own_grid(datastore: PacsDatastore) -> None:
    image = load(datastore.get_image_uri(GOOD))
    np.testing.assert_allclose(image.affine, expected_affine(), atol=1e-3)
    assert image.shape == (5, 7, 5)
    frames = load(datastore.get_image_uri(FRAMES))
    np.testing.assert_array_equal(np.asarray(frames.dataobj), np.arange(6 * 7 * 5).reshape(6, 7, 5).T)
    assert cached(datastore) == {GOOD, FRAMES, f"{GOOD}.nii.gz", f"{FRAMES}.nii.gz"}
    assert datastore.get_image_info(GOOD)["SeriesInstanceUID"] == GOOD


def test_bad_series_is_refused_left_out_and_tried_again_after_a_reload(datastore: PacsDatastore, pacs: DicomWeb, tmp_path: Path) -> None:
    assert set(datastore.list_images()) == {GOOD, FRAMES, GAP}
    with pytest.raises(VolumeError, match="a slice is missing"):
        datastore.get_image_uri(GAP)
    assert set(datastore.list_images()) == {GOOD, FRAMES}
    assert "a slice is missing" in datastore.status()["left_out"][GAP]
    write_series(tmp_path / "again", 7, series=GAP)
    pacs.instances = [item for item in pacs.instances if item.SeriesInstanceUID != GAP] + DicomWeb.read(tmp_path / "again", "*")
    datastore.rescan()
    assert "left_out" not in datastore.status()
    assert load(datastore.get_image_uri(GAP)).shape == (5, 7, 7)


def test_download_that_breaks_off_leaves_nothing(datastore: PacsDatastore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host would take the slices that arrived for the series."""
    retrieve: Callable[..., Any] = datastore._client.retrieve_series

    def broken(*arguments: Any, **options: Any) -> Iterator[Any]:
        yield from list(retrieve(*arguments, **options))[:3]
        raise ConnectionError("the line went dead")

    with monkeypatch.context() as patch:
        patch.setattr(datastore._client, "retrieve_series", broken)
        with pytest.raises(ConnectionError):
            datastore.get_image_uri(GOOD)
    assert cached(datastore) == set()
    assert load(datastore.get_image_uri(GOOD)).shape == (5, 7, 5)


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI:UserWarning")
def test_no_uid_leads_out_of_the_cache(datastore: PacsDatastore, pacs: DicomWeb, tmp_path: Path) -> None:
    for number, instance in enumerate(pacs.of_series(GOOD)):
        instance.SOPInstanceUID = f"../../../../escaped{number}"
        instance.file_meta.MediaStorageSOPInstanceUID = instance.SOPInstanceUID
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    assert load(datastore.get_image_uri(GOOD)).shape == (5, 7, 5)
    assert {path for path in tmp_path.rglob("*") if "cache" not in path.parts} == before
    folder = Path(datastore._datastore.image_path()) / GOOD
    assert sorted(path.name for path in folder.iterdir()) == [f"{number:06d}.dcm" for number in range(1, 6)]
    for instance in pacs.of_series(FRAMES):
        instance.SeriesInstanceUID = ".."
    datastore.rescan()
    with pytest.raises(UnknownNameError, match="image"):
        datastore.get_image_uri("..")


def test_part_of_a_series_is_not_taken_for_all_of_it(datastore: PacsDatastore, pacs: DicomWeb) -> None:
    pacs.withheld = 2
    for _ in range(2):
        with pytest.raises(requests.RequestException, match=r"3 of 5 instances came: ask again"):
            datastore.get_image_uri(GOOD)
    assert cached(datastore) == set() and GOOD in datastore.list_images()
    pacs.withheld = 0
    assert load(datastore.get_image_uri(GOOD)).shape == (5, 7, 5)
    fetched = Path(datastore.get_image_uri(GOOD)).stat().st_mtime_ns
    assert Path(datastore.get_image_uri(GOOD)).stat().st_mtime_ns == fetched, "it is fetched once"
    # While it is fetched, the series grows.
    found, more = datastore.archive.find(GAP), pacs.of_series(GAP)[0].copy()
    assert found is not None and found.num_instances == 6
    pacs.instances.append(more)
    with pytest.raises(requests.RequestException, match=r"7 of 6 instances came"):
        datastore.get_image_uri(GAP)
    with pytest.raises(VolumeError):
        datastore.get_image_uri(GAP)


def test_series_of_a_pacs_that_does_not_count_is_taken_as_it_comes(datastore: PacsDatastore, pacs: DicomWeb) -> None:
    pacs.counts = False
    assert load(datastore.get_image_uri(GOOD)).shape == (5, 7, 5)


def grow(pacs: DicomWeb, folder: Path) -> None:
    """One slice more at each end of the good series."""
    write_series(folder, 7, series=GOOD)
    for item in (grown := DicomWeb.read(folder, "*")):
        item.ImagePositionPatient = [float(value) for value in np.array(item.ImagePositionPatient, dtype=float) - STEP_MM * NORMAL]
    pacs.instances = [item for item in pacs.instances if item.SeriesInstanceUID != GOOD] + grown


@pytest.fixture
def book(datastore: PacsDatastore, tmp_path: Path) -> Iterator[TagBook]:
    store = TagStore(tmp_path / "tags.sqlite")
    book = TagBook(store, DatastoreImages(datastore), lambda: ("edema", "tumor"))
    add_tags(datastore, book, tmp_path / "codes.json")
    yield book
    store.close()


def test_series_that_has_grown_keeps_neither_tags_nor_labels(
    datastore: PacsDatastore, pacs: DicomWeb, book: TagBook, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Slice 0 is another one than before: what was said of it would be learned of the wrong slice."""
    before: dict[str, StoredTag] = {"edema": False, "tumor": [[0, 1]]}
    book.write({GOOD: before}, "ann", "manual")
    image = read_volume(datastore.get_image_uri(GOOD))
    write_mask(np.ones(image.array.shape, np.uint8), image, tmp_path / "label.nii.gz")
    datastore.save_label(GOOD, str(tmp_path / "label.nii.gz"), "original", {})
    labels = Path(datastore._datastore.label_path("original"))

    # The same series once more, and one that is in the cache no longer, change nothing.
    shutil.rmtree(Path(datastore._datastore.image_path()) / GOOD)
    Path(datastore.get_image_uri(GOOD)).unlink()
    assert load(datastore.get_image_uri(GOOD)).shape == (5, 7, 5)
    assert book.store.tags(GOOD) == before and len(list(labels.iterdir())) == 1

    # Nor does a fetch that breaks off.
    grow(pacs, tmp_path / "grown")
    datastore.archive.forget()
    pacs.broken = {GOOD}
    with pytest.raises(requests.HTTPError):
        datastore.get_image_uri(GOOD)
    assert book.store.tags(GOOD) == before and len(list(labels.iterdir())) == 1

    pacs.broken = set()
    with caplog.at_level(logging.WARNING):
        assert load(datastore.get_image_uri(GOOD)).shape == (5, 7, 7)
    assert f"Series {GOOD} has other slices than before" in caplog.text
    assert book.tags(GOOD) == {"edema": None, "tumor": None}
    assert not list(labels.iterdir()) and datastore.get_labels_by_image_id(GOOD) == {}
    assert [event.value for event in book.store.history(GOOD, "tumor")] == [[[0, 1]], None]
    book.write({GOOD: {"tumor": [[1, 6]]}}, "ann", "manual")
    datastore.archive.forget()
    datastore.get_image_uri(GOOD)
    assert book.store.tags(GOOD)["tumor"] == [[1, 6]]


def test_series_in_the_cache_of_a_server_that_took_no_note_of_grids(
    datastore: PacsDatastore, pacs: DicomWeb, book: TagBook, tmp_path: Path
) -> None:
    book.write({GOOD: {"tumor": [[0, 1]]}}, "ann", "manual")
    shutil.rmtree(Path(datastore._datastore.image_path()) / GRIDS)
    grow(pacs, tmp_path / "grown")
    datastore.archive.forget()
    datastore.get_image_uri(GOOD)
    assert book.store.tags(GOOD) == {"tumor": None}


def test_removing_the_copy_of_a_series_keeps_its_tags(datastore: PacsDatastore, book: TagBook) -> None:
    book.write({GOOD: {"tumor": [[0, 1]]}}, "ann", "manual")
    datastore.remove_image(GOOD)
    assert book.store.tags(GOOD) == {"tumor": [[0, 1]]}


def test_tag_of_a_series_that_is_left_out_can_be_taken_back(datastore: PacsDatastore, book: TagBook) -> None:
    """Absent can be said of a series that nobody has opened yet."""
    book.write({GAP: {"tumor": False, "edema": True}}, "ann", "manual")
    with pytest.raises(VolumeError):
        datastore.get_image_uri(GAP)
    for tags in ({"tumor": True}, {"tumor": None, "edema": False}):
        with pytest.raises(UnknownNameError, match=GAP):
            book.write({GAP: tags}, "ann", "manual")
    assert book.images.missing([GAP, "9.9.9"]) == [GAP, "9.9.9"]
    assert book.images.missing([GAP, "9.9.9"], with_left_out=True) == ["9.9.9"]
    book.write({GAP: {"tumor": None}, GOOD: {"tumor": True}}, "ann", "manual")
    assert book.store.tags(GAP) == {"edema": True, "tumor": None}
    with pytest.raises(UnknownNameError, match=r"9\.9\.9"):
        book.write({"9.9.9": {"tumor": None}}, "ann", "manual")


def test_unknown_series(datastore: PacsDatastore) -> None:
    with pytest.raises(UnknownNameError, match="image"):
        datastore.get_image_uri("9.9.9")


def test_patients_without_fetching_a_series(datastore: PacsDatastore) -> None:
    patients = DatastoreImages(datastore).patients()
    assert set(patients) == {GOOD, FRAMES, GAP}
    assert patients[GOOD] == patients[GAP] != patients[FRAMES]
    assert "SECRET" not in "".join(patients.values())
    assert cached(datastore) == set()

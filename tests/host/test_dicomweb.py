"""Images behind a DICOMweb server: tags by SeriesInstanceUID, kept in the cache folder; masks as DICOM SEG."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
import requests

from app_cdm.data.volume import Volume, write_mask
from lib.tags.location import tags_file
from tests.host.answers import METHODS, ask_mask, assert_refused, nifti
from tests.host.dicomweb_process import DicomWeb
from tests.host.server_process import Server
from tests.host.studies import SHAPE, head, write_dicom_series, write_nifti

# ITK's binary modules warn while they load, and die if the warning is made an error.
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DicomWeb]:
    folder = tmp_path_factory.mktemp("pacs")
    for number in range(2):
        write_dicom_series(folder / f"series{number}", seed=number)
    server = DicomWeb(folder)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def server(pacs: DicomWeb, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    work = tmp_path_factory.mktemp("dicomweb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MONAI_LABEL_DICOMWEB_CACHE_PATH", str(work / "host_cache"))
        running = Server(pacs.url, work, ["--model-dir", str(model_dir)])  # type: ignore[arg-type]
    try:
        yield running.wait()
    finally:
        code = running.stop()
    assert code == 0


@pytest.fixture
def uid(pacs: DicomWeb) -> str:
    return str(sorted({item.SeriesInstanceUID for item in pacs.instances if item.Modality == "MR"})[0])


def tags(server: Server, uid: str) -> object:
    return requests.get(f"{server.url}/tags/{uid}", timeout=30).json()["tags"]


def put_info(server: Server, uid: str, info: object) -> requests.Response:
    return requests.put(f"{server.url}/datastore/image/info", params={"image": uid}, data={"info": json.dumps(info)}, timeout=30)


def test_absence_is_tagged_without_fetching_the_series(server: Server, uid: str, pacs: DicomWeb) -> None:
    assert put_info(server, uid, {"tags": {"edema": False}}).status_code == 200
    assert tags(server, uid) == {"edema": False, "tumor": None}
    assert not list((server.log.parent / "host_cache").rglob("*.nii.gz"))
    assert tags_file(pacs.url, server.log.parent / "cache").is_file()
    assert_refused(put_info(server, "1.2.3", {"tags": {"edema": False}}), 404, "1.2.3")
    info = requests.get(f"{server.url}/info/", timeout=30).json()["datastore"]
    assert (info["total"], info["completed"]) == (2, 1)


def test_ranges_are_checked_against_the_series(server: Server, uid: str) -> None:
    assert_refused(put_info(server, uid, {"tags": {"tumor": [[2, 6]]}}), 400, "6 slices")
    assert put_info(server, uid, {"tags": {"tumor": [[2, 5]]}, "note": "seen"}).status_code == 200
    info = requests.get(f"{server.url}/datastore/image/info", params={"image": uid}, timeout=30).json()
    assert info["tags"]["tumor"] == [[2, 5]] and info["note"] == "seen"
    for index in (server.log.parent / "host_cache").rglob("datastore_v2.json"):
        assert "tags" not in json.loads(index.read_text())["objects"][uid]["image"]["info"]


def test_image_is_not_uploaded_over_a_series(server: Server, uid: str, tmp_path: Path) -> None:
    """The server would give out what was uploaded as the series, and learn from it."""
    before = requests.get(f"{server.url}/datastore/image", params={"image": uid}, timeout=30).content
    content = write_nifti(tmp_path / "other.nii.gz", head(7)).read_bytes()
    for name in (uid, "new"):
        upload = requests.put(
            f"{server.url}/datastore/image", params={"image": name}, files={"file": ("other.nii.gz", content)}, timeout=30
        )
        assert_refused(upload, 400, "store it in the PACS")
    assert requests.get(f"{server.url}/datastore/image", params={"image": uid}, timeout=30).content == before
    assert requests.get(f"{server.url}/info/", timeout=30).json()["datastore"]["total"] == 2


def test_submission_becomes_tags_and_an_empty_one_means_absent(server: Server, uid: str, pacs: DicomWeb, tmp_path: Path) -> None:
    image = nifti(requests.get(f"{server.url}/datastore/image", params={"image": uid}, timeout=30).content)
    for slices, expected in (([1, 3], [[1, 3]]), ([], False)):
        mask = np.zeros(SHAPE, dtype=np.uint8)
        mask[10:20, 10:20, slices] = 2
        write_mask(mask, Volume(mask.astype(np.float32), image.affine), tmp_path / "label.nii.gz")
        params = {"params": json.dumps({"label_info": [{"name": "edema"}, {"name": "tumor"}], "client_id": "ann"})}
        files = {"label": ("label.nii.gz", (tmp_path / "label.nii.gz").read_bytes())}
        saved = requests.put(f"{server.url}/datastore/label", params={"image": uid}, data=params, files=files, timeout=60)
        assert saved.status_code == 200, saved.text
        assert saved.json()["tags"] == {"edema": False, "tumor": expected} == tags(server, uid)
    assert sum(item.Modality == "SEG" for item in pacs.instances) == 1, "the mask is stored in the PACS, the empty one cannot be"


def test_next_sample_passes_over_the_tagged_series(server: Server, uid: str) -> None:
    requests.put(f"{server.url}/tags/{uid}", json={"tags": {"edema": False, "tumor": False}}, timeout=30).raise_for_status()
    for strategy in ("first", "untagged", "random"):
        offered = requests.post(f"{server.url}/activelearning/{strategy}", json={}, timeout=60).json()
        assert offered["id"] != uid
    requests.post(f"{server.url}/tags/{uid}/undo", timeout=30).raise_for_status()


@pytest.mark.parametrize("method", METHODS)
def test_mask_is_returned_as_dicom_seg(server: Server, uid: str, method: str) -> None:
    mask, params = ask_mask(server.url, uid, model=method)
    assert params["method"] == method and mask.shape == SHAPE and set(np.unique(mask)) == {0, 1, 2}
    wanted = {"label_info": [{"name": "edema"}, {"name": "tumor"}]}
    query = {"image": uid, "output": "dicom_seg"}
    response = requests.post(f"{server.url}/infer/{method}", params=query, data={"params": json.dumps(wanted)}, timeout=60)
    assert response.status_code == 200, response.text
    seg = pydicom.dcmread(io.BytesIO(response.content))
    assert seg.Modality == "SEG" and [segment.SegmentLabel for segment in seg.SegmentSequence] == ["edema", "tumor"]
    numbers = [frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber for frame in seg.PerFrameFunctionalGroupsSequence]
    pixels = seg.pixel_array.reshape(len(numbers), -1).sum(axis=1)
    for number in (1, 2):
        assert sum(count for count, of in zip(pixels, numbers, strict=True) if of == number) == np.count_nonzero(mask == number)


def test_tag_of_a_series_that_cannot_be_read_is_taken_back(server: Server, uid: str, pacs: DicomWeb) -> None:
    """Last in this file: one of the series loses a slice."""
    other = next(str(item.SeriesInstanceUID) for item in pacs.instances if item.Modality == "MR" and item.SeriesInstanceUID != uid)
    for value in (True, False):
        requests.put(f"{server.url}/tags/{other}", json={"tags": {"tumor": value}}, timeout=30).raise_for_status()
    pacs.instances.remove(pacs.of_series(other)[3])
    image = f"{server.url}/datastore/image"
    assert_refused(requests.get(image, params={"image": other}, timeout=30), 422, "a slice is missing")
    assert other in requests.get(f"{server.url}/info/", timeout=30).json()["datastore"]["left_out"]
    assert_refused(requests.put(f"{server.url}/tags/{other}", json={"tags": {"tumor": True}}, timeout=30), 404, other)
    assert tags(server, other) == {"edema": None, "tumor": False}
    assert requests.post(f"{server.url}/tags/{other}/undo", timeout=30).json()["tags"]["tumor"] is True
    cleared = requests.put(f"{server.url}/tags/{other}?class=tumor", json={"value": None}, timeout=30)
    assert cleared.status_code == 200 and tags(server, other) == {"edema": None, "tumor": None}
    assert_refused(requests.put(f"{server.url}/tags/1.2.3?class=tumor", json={"value": None}, timeout=30), 404, "1.2.3")

"""Accepted results and submitted labels in a PACS: DICOM SEG with names, codes and origin, on the very instances."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
import requests

from app_cdm.data.dicom_source import read_sources, to_planes
from app_cdm.data.volume import Volume, write_mask
from tests.host.answers import assert_refused, nifti
from tests.host.dicomweb_process import DicomWeb
from tests.host.server_process import Server
from tests.host.studies import SHAPE, write_dicom_series
from tests.host.test_results import decide, get, make, num_actions, tags

# ITK's binary modules warn while they load, and die if the warning is made an error.
pytestmark = [
    pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning"),
    pytest.mark.filterwarnings('ignore:The string "Synthetic" is unlikely:UserWarning'),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pacs")
    for number in range(2):
        write_dicom_series(folder / f"series{number}", seed=number)
    return folder


@pytest.fixture(scope="module")
def pacs(folder: Path) -> Iterator[DicomWeb]:
    server = DicomWeb(folder)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def server(pacs: DicomWeb, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    work = tmp_path_factory.mktemp("results_dicomweb")
    codes = {"edema": {"category": ["49755003", "SCT", "Morphologically Abnormal Structure"], "type": ["1", "99LOCAL", "Swelling"]}}
    (model_dir / "segment_codes.json").write_text(json.dumps(codes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MONAI_LABEL_DICOMWEB_CACHE_PATH", str(work / "host_cache"))
        running = Server(pacs.url, work, ["--model-dir", str(model_dir)])  # type: ignore[arg-type]
    try:
        yield running.wait()
    finally:
        code = running.stop()
        (model_dir / "segment_codes.json").unlink()
    assert code == 0


def uid_of(pacs: DicomWeb, index: int) -> str:
    return str(sorted({item.SeriesInstanceUID for item in pacs.instances if item.Modality == "MR"})[index])


def segs(pacs: DicomWeb, uid: str) -> list[pydicom.Dataset]:
    found = [item for item in pacs.instances if item.Modality == "SEG"]
    return [item for item in found if item.ReferencedSeriesSequence[0].SeriesInstanceUID == uid]


def planes(seg: pydicom.Dataset, sources: list[pydicom.Dataset]) -> np.ndarray:
    """The segmentation as a second reader finds it on the instances."""
    content = io.BytesIO()
    pydicom.dcmwrite(content, seg, write_like_original=False)
    read = highdicom.seg.Segmentation.from_dataset(pydicom.dcmread(io.BytesIO(content.getvalue())), copy=False)
    uids = [source.SOPInstanceUID for source in sources]
    return np.asarray(read.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True))


def sources_of(folder: Path, uid: str) -> list[pydicom.Dataset]:
    return read_sources([path for path in sorted(folder.rglob("IM*")) if pydicom.dcmread(path).SeriesInstanceUID == uid])


def test_an_accepted_result_is_one_segmentation_in_the_pacs(server: Server, pacs: DicomWeb, folder: Path) -> None:
    uid = uid_of(pacs, 0)
    made: dict[str, Any] = make(server, uid)
    mask = nifti(get(server, f"/results/{made['result']}/mask").content)
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda user: decide(server, made["result"], "accept", user).json(), ["ann"] * 3))
    assert answers[0] == answers[1] == answers[2] and answers[0]["image"] == uid
    (seg,) = segs(pacs, uid)
    sources = sources_of(folder, uid)
    assert np.array_equal(planes(seg, sources), to_planes(np.asarray(mask.dataobj), mask.affine, sources))
    assert [item.SegmentLabel for item in seg.SegmentSequence] == ["edema", "tumor"]
    types = [item.SegmentedPropertyTypeCodeSequence[0].CodeMeaning for item in seg.SegmentSequence]
    assert types == ["Swelling", "Neoplasm"], "the first from segment_codes.json"
    assert {item.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion for item in seg.SegmentSequence} == {made["model_version"]}
    assert (seg.PatientID, seg.StudyInstanceUID) == (sources[0].PatientID, sources[0].StudyInstanceUID)
    assert seg.FrameOfReferenceUID == sources[0].FrameOfReferenceUID
    assert tags(server, uid)["tags"] == answers[0]["tags"] and num_actions(server, uid) == 1
    assert {item["provenance"] for item in tags(server, uid)["details"].values()} == {"mask"}
    response = requests.post(f"{server.url}/results/{made['result']}/dicom?kind=seg", timeout=60)
    assert pydicom.dcmread(io.BytesIO(response.content)).SOPInstanceUID == seg.SOPInstanceUID


def test_an_accepted_empty_mask_stores_nothing_in_the_pacs(server: Server, pacs: DicomWeb) -> None:
    uid = uid_of(pacs, 1)
    made = make(server, uid, params={"gate_threshold": 1.0})
    assert_refused(requests.post(f"{server.url}/results/{made['result']}/dicom", timeout=60), 409, "empty")
    assert decide(server, made["result"], "accept").json()["tags"] == {"edema": False, "tumor": False}
    assert segs(pacs, uid) == []


def test_a_label_from_a_viewer_keeps_its_names(server: Server, pacs: DicomWeb, folder: Path, tmp_path: Path) -> None:
    """The host gives the first name to the smallest value: a tumor alone would be stored as edema."""
    uid = uid_of(pacs, 1)
    image = nifti(requests.get(f"{server.url}/datastore/image", params={"image": uid}, timeout=60).content)
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[10:20, 10:20, 1:3] = 2
    turned, affine = np.flip(mask, 2), image.affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, SHAPE[2] - 1], [0, 0, 0, 1.0]])
    write_mask(turned, Volume(turned.astype(np.float32), affine), tmp_path / "label.nrrd")
    params = {"params": json.dumps({"label_info": [{"name": "edema"}, {"name": "tumor"}], "client_id": "dr ben"})}
    files = {"label": ("label.nrrd", (tmp_path / "label.nrrd").read_bytes())}
    saved = requests.put(f"{server.url}/datastore/label", params={"image": uid}, data=params, files=files, timeout=120)
    assert saved.status_code == 200 and saved.json()["tags"] == {"edema": False, "tumor": [[1, 2]]}, saved.text
    (seg,) = segs(pacs, uid)
    sources = sources_of(folder, uid)
    assert np.array_equal(planes(seg, sources), to_planes(mask, image.affine, sources))
    assert [(item.SegmentLabel, item.SegmentAlgorithmType) for item in seg.SegmentSequence] == [("edema", "MANUAL"), ("tumor", "MANUAL")]
    assert str(seg.ContentCreatorName) == "dr ben^"
    far = affine.copy()
    far[:3, 3] += 500
    write_mask(turned[:20], Volume(turned[:20].astype(np.float32), far), tmp_path / "label.nrrd")
    files = {"label": ("label.nrrd", (tmp_path / "label.nrrd").read_bytes())}
    refused = requests.put(f"{server.url}/datastore/label", params={"image": uid}, data=params, files=files, timeout=120)
    assert_refused(refused, 422, "outside the image")
    assert len(segs(pacs, uid)) == 1


def test_a_damaged_file_of_codes_stores_nothing(server: Server, pacs: DicomWeb, model_dir: Path) -> None:
    uid = uid_of(pacs, 0)
    made, before = make(server, uid), num_actions(server, uid)
    good = (model_dir / "segment_codes.json").read_text()
    try:
        (model_dir / "segment_codes.json").write_text("{")
        assert_refused(decide(server, made["result"], "accept"), 409, "segment_codes.json")
        assert len(segs(pacs, uid)) == 1 and num_actions(server, uid) == before
    finally:
        (model_dir / "segment_codes.json").write_text(good)
    assert decide(server, made["result"], "accept").status_code == 200 and len(segs(pacs, uid)) == 2

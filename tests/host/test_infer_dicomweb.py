"""Inference behind a DICOMweb server, with a model that knows one of the two classes: whose the segments are, and what stays behind."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import requests

from tests.host.answers import assert_refused
from tests.host.dicomweb_process import DicomWeb
from tests.host.server_process import Server
from tests.host.studies import head, write_dicom_series, write_nifti
from tests.host.tiny_model import save_tiny_model

# ITK's binary modules warn while they load, and die if the warning is made an error.
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")

NAMES = {"label_info": [{"name": "tumor"}]}


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DicomWeb]:
    folder = tmp_path_factory.mktemp("pacs")
    write_dicom_series(folder / "series")
    server = DicomWeb(folder)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def server(pacs: DicomWeb, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    work = tmp_path_factory.mktemp("infer_dicomweb")
    save_tiny_model(work / "models" / "tumors", methods=["student"], class_names=["tumor"])
    arguments = ["--model-dir", str(work / "models"), "--classes", "edema,tumor"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MONAI_LABEL_DICOMWEB_CACHE_PATH", str(work / "host_cache"))
        running = Server(pacs.url, work, arguments)  # type: ignore[arg-type]
    try:
        yield running.wait()
    finally:
        code = running.stop()
    assert code == 0


@pytest.fixture(scope="module")
def uid(pacs: DicomWeb) -> str:
    return str(pacs.instances[0].SeriesInstanceUID)


def test_a_batch_of_final_labels_stores_segments_under_the_names_of_the_model(server: Server, pacs: DicomWeb, uid: str) -> None:
    answer = requests.post(f"{server.url}/batch/infer/student?run_sync=true", json={"label_tag": "final"}, timeout=60)
    assert answer.status_code == 200 and answer.json()[uid]["tag"] == "final", answer.text
    (seg,) = [item for item in pacs.instances if item.Modality == "SEG"]
    assert [item.SegmentLabel for item in seg.SegmentSequence] == ["tumor"]
    info = requests.get(f"{server.url}/datastore/label/info", params={"label": uid, "tag": "final"}, timeout=30).json()
    assert info["label_info"] == [{"name": "tumor"}]


def ask_segmentation(server: Server, params: object, image: str = "", **options: Any) -> requests.Response:
    query = {"output": "dicom_seg", "image": image}
    return requests.post(f"{server.url}/infer/student", params=query, data={"params": json.dumps(params)}, timeout=60, **options)


def test_a_mask_as_dicom_seg_leaves_nothing(server: Server, uid: str) -> None:
    answer = ask_segmentation(server, NAMES, uid)
    assert answer.status_code == 200 and answer.headers["Content-Type"] == "application/dicom", answer.text
    assert answer.headers["Content-Disposition"].endswith('.dcm"')
    seg = pydicom.dcmread(io.BytesIO(answer.content))
    assert [item.SegmentLabel for item in seg.SegmentSequence] == ["tumor"] and np.any(seg.pixel_array)
    assert server.leftovers() == []


def test_an_empty_mask_is_no_dicom_seg(server: Server, uid: str) -> None:
    assert_refused(ask_segmentation(server, {**NAMES, "gate_threshold": 1.0}, uid), 409, "empty", "output=image")
    assert server.leftovers() == []


@pytest.mark.parametrize("names", [None, [], "tumor", {"name": "tumor"}, ["tumor"], [{"name": 1}]])
def test_segments_without_names_are_refused_before_anything_is_computed(server: Server, uid: str, names: object) -> None:
    assert_refused(ask_segmentation(server, {"label_info": names}, uid), 400, '"label_info": [{"name"')
    assert server.leftovers() == []


def test_an_upload_as_dicom_seg_is_refused(server: Server, tmp_path: Path) -> None:
    with write_nifti(tmp_path / "volume.nii.gz", head()).open("rb") as file:
        assert_refused(ask_segmentation(server, NAMES, files={"file": file}), 400, "?image=")
    assert_refused(ask_segmentation(server, NAMES), 400, "?image=")
    assert server.leftovers() == []


def test_every_refusal_was_foreseen(server: Server) -> None:
    assert "Traceback" not in server.log.read_text()

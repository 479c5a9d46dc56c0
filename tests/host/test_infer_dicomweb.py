"""Inference behind a DICOMweb server, with a model that knows one of the two classes: whose the segments are, and what stays behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests

from tests.host.dicomweb_process import DicomWeb
from tests.host.server_process import Server
from tests.host.studies import write_dicom_series
from tests.host.tiny_model import save_tiny_model

# ITK's binary modules warn while they load, and die if the warning is made an error.
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")


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

"""A real PACS behind the server: what is listed, what the browser may read through it, labels that come back, what is counted."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
import requests

from app_cdm.data.volume import Volume, write_mask
from demo.orthanc import Orthanc, OrthancError, find_orthanc, listening
from demo.server import find_free_port
from tests.host.answers import ask_mask, assert_refused, nifti
from tests.host.server_process import Server
from tests.host.studies import AXIAL, SAGITTAL, SHAPE, write_dicom_series

# ITK's binary modules warn while they load, and die if the warning is made an error.
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")
# The viewer as the wheel brings it.
VIEWER = Path(sys.prefix) / f"lib/python3.{sys.version_info[1]}/site-packages/monailabel/endpoints/static/ohif"
FORGET_LIMIT_S = 20.0
USERS = {"reader": "not-in-any-log"}


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An MR, a CT and a series of another kind, each in a study of its own."""
    folder = tmp_path_factory.mktemp("series")
    write_dicom_series(folder / "mr", seed=1, axes=AXIAL, patient="mr", step_mm=-5.0)
    write_dicom_series(folder / "ct", seed=2, axes=SAGITTAL, patient="ct", modality="CT")
    write_dicom_series(folder / "other", seed=3, patient="other", modality="OT")
    return {name: folder / name for name in ("mr", "ct", "other")}


@pytest.fixture(scope="module")
def uids(series: dict[str, Path]) -> dict[str, str]:
    return {name: str(pydicom.dcmread(folder / "IM0000").SeriesInstanceUID) for name, folder in series.items()}


@pytest.fixture(scope="module")
def pacs(series: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    try:
        find_orthanc()
    except OrthancError as error:
        pytest.skip(str(error))
    with Orthanc(tmp_path_factory.mktemp("orthanc"), users=USERS) as orthanc:
        orthanc.store(file for folder in series.values() for file in sorted(folder.iterdir()))
        yield orthanc


@pytest.fixture(scope="module")
def server(pacs: Orthanc, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MONAI_LABEL_DICOMWEB_PASSWORD", USERS["reader"])
        work = tmp_path_factory.mktemp("pacs_server")
        running = Server(pacs.url, work, ["--model-dir", str(model_dir), "--dicomweb-user", "reader"], preloaded=False)  # type: ignore[arg-type]
    try:
        yield running.wait()
    finally:
        code = running.stop()
    assert code == 0


def get(server: Server, path: str, **options: object) -> requests.Response:
    return requests.get(f"{server.url}{path}", timeout=60, **options)  # type: ignore[arg-type]


def counts(server: Server) -> tuple[int, int]:
    status = get(server, "/info/").json()["datastore"]
    return status["total"], status["completed"]


def stored_segmentations(pacs: Orthanc) -> list[dict[str, object]]:
    query = {"Level": "Series", "Query": {"Modality": "SEG"}, "Expand": True}
    found = requests.post(f"{pacs.address}/tools/find", json=query, auth=("reader", USERS["reader"]), timeout=30).json()
    assert isinstance(found, list)
    return found


def submit(server: Server, uid: str, mask: np.ndarray, names: list[str], folder: Path) -> requests.Response:
    image = nifti(get(server, "/datastore/image", params={"image": uid}).content)
    write_mask(mask, Volume(mask.astype(np.float32), image.affine), folder / "label.nii.gz")
    params = {"params": json.dumps({"label_info": [{"name": name} for name in names], "client_id": "ann"})}
    files = {"label": ("label.nii.gz", (folder / "label.nii.gz").read_bytes())}
    return requests.put(f"{server.url}/datastore/label", params={"image": uid}, data=params, files=files, timeout=120)


def test_pacs_listens_on_this_machine_only(pacs: Orthanc) -> None:
    port = int(pacs.address.rpartition(":")[2])
    assert {address for address, used in listening() if used == port} == {"127.0.0.1"}
    assert pacs.is_loopback_only()
    assert requests.get(f"{pacs.url}/studies", timeout=30).status_code == 401, "the PACS of this test asks for a password"
    with pytest.raises(OrthancError, match=f"port {port} is in use"), Orthanc(pacs.log.parent / "second", port):
        pass


def test_mr_and_ct_are_listed_and_what_is_no_image_is_not(server: Server, uids: dict[str, str]) -> None:
    assert counts(server)[0] == 2
    for name in ("mr", "ct"):
        assert get(server, f"/tags/{uids[name]}").status_code == 200
    assert_refused(get(server, f"/tags/{uids['other']}"), 404, uids["other"])


def test_proxy_passes_filters_on(server: Server, series: dict[str, Path]) -> None:
    for name, modality in (("mr", "MR"), ("ct", "CT")):
        for query in ({"PatientID": name}, {"ModalitiesInStudy": modality}):
            found = get(server, "/proxy/dicom/qido/studies", params={**query, "includefield": "all"})
            assert found.headers["Content-Type"].startswith("application/dicom+json")
            assert [item["00100020"]["Value"] for item in found.json()] == [[name]], query
    assert len(get(server, "/proxy/dicom/qido/studies").json()) == 3
    assert len(get(server, "/proxy/dicom/qido/studies", params={"limit": "1"}).json()) == 1


def test_proxy_gives_instances_as_they_are_stored(server: Server, series: dict[str, Path]) -> None:
    stored = pydicom.dcmread(series["mr"] / "IM0002")
    path = f"studies/{stored.StudyInstanceUID}/series/{stored.SeriesInstanceUID}"
    frame = get(
        server,
        f"/proxy/dicom/wado/{path}/instances/{stored.SOPInstanceUID}/frames/1",
        headers={"Accept": 'multipart/related; type="application/octet-stream"'},
    )
    assert frame.headers["Content-Type"].startswith("multipart/related") and stored.PixelData in frame.content
    metadata = get(server, f"/proxy/dicom/qido/{path}/metadata").json()
    assert len(metadata) == SHAPE[2]
    whole = get(server, f"/proxy/dicom/wado/{path}", stream=True)
    assert whole.status_code == 200 and sum(map(len, whole.iter_content(1 << 16))) > SHAPE[2] * len(stored.PixelData)
    assert get(server, f"/proxy/dicom/wado/{path}/instances/1.2.3").status_code == 404


OUTSIDE = (
    *("../system", "%2e%2e/system", "studies/../../system", "studies/%2E%2E/%2E%2E/system", "instances%5c..%5c..%5csystem", "system"),
    *("http://127.0.0.1:1/studies", "//127.0.0.1:1/studies", "studies//series", "studies/1.2%0d%0aX: y", "studies/1.2%3Fx=y", ""),
)


@pytest.mark.parametrize("path", OUTSIDE)
@pytest.mark.parametrize("service", ["wado/", "qido/", "stow/", ""])
def test_proxy_stays_in_the_dicomweb_root(server: Server, service: str, path: str) -> None:
    request = requests.Request("GET", f"{server.url}/proxy/dicom/{service}").prepare()
    request.url = f"{server.url}/proxy/dicom/{service}{path}"  # as it is: `requests` would tidy it up
    with requests.Session() as session:
        answer = session.send(request, timeout=30, allow_redirects=False)
    assert answer.status_code in (400, 404), answer.text
    assert "OrthancPlugin" not in answer.text and "DatabaseVersion" not in answer.text


def test_proxy_only_reads(server: Server, series: dict[str, Path]) -> None:
    body = (series["mr"] / "IM0000").read_bytes()
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        for path in ("stow/studies", "wado/studies", "studies"):
            assert_refused(requests.request(method, f"{server.url}/proxy/dicom/{path}", data=body, timeout=30), 405, "only reads")


def test_password_is_shown_nowhere(server: Server) -> None:
    shown = [get(server, path).text for path in ("/info/", "/logs/?lines=1000", "/proxy/dicom/qido/studies", "/ohif/app-config.js")]
    shown += [server.log.read_text(), subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout]
    for text in shown:
        assert text and USERS["reader"] not in text


def test_files_of_the_viewer_are_what_they_are(server: Server) -> None:
    for path, kind in (
        ("assets/images/MR-T2-Brain.png", "image/png"),
        ("app.bundle.css", "text/css"),
        ("031089e563a18ada8441.wasm", "application/wasm"),
        (next(VIEWER.glob("app.bundle.*.js")).name, "text/javascript"),
    ):
        answer = get(server, f"/ohif/{path}")
        assert answer.headers["Content-Type"].split(";")[0] == kind, path
        assert answer.content == (VIEWER / path).read_bytes()
    for path in ("assets/nothing.png", "nothing.js", "..%2f..%2fohif.py", "%2e%2e/%2e%2e/ohif.py"):
        assert_refused(get(server, f"/ohif/{path}"), 404)


def test_page_of_the_viewer_is_set_up_for_this_server(server: Server) -> None:
    for path in ("", "viewer?StudyInstanceUIDs=1.2", "monai-label?StudyInstanceUIDs=1.2"):
        answer = get(server, f"/ohif/{path}")
        assert answer.headers["Content-Type"].startswith("text/html")
        assert "/ohif/app-cdm.js" in answer.text and "googleapis" not in answer.text
        assert "connect-src 'self'" in answer.headers["Content-Security-Policy"]
    assert get(server, "/ohif", allow_redirects=False).headers["Location"].endswith("/ohif/")
    assert "MONAILABEL_SERVER_URL" in get(server, "/ohif/app-cdm.js").text
    assert "dicomUploadEnabled: false" in get(server, "/ohif/app-config.js").text


def test_label_comes_back_from_the_pacs_on_the_images_grid(server: Server, pacs: Orthanc, uids: dict[str, str], tmp_path: Path) -> None:
    """Stored with one class on two slices, so that the segmentation in the PACS is cropped and its segment is number 1."""
    uid = uids["ct"]
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[10:20, 12:30, 2:4] = 2
    mask[11, 13, 2] = 0
    assert submit(server, uid, mask, ["edema", "tumor"], tmp_path).status_code == 200
    assert len(stored_segmentations(pacs)) == 1
    for copy in (server.log.parent / "cache").rglob(f"labels/final/{uid}*"):
        copy.unlink()  # what another server, or this one after its cache was cleared, would find
    wait_until_forgotten(server, uid)
    read = nifti(get(server, "/datastore/label", params={"label": uid, "tag": "final"}).content)
    image = nifti(get(server, "/datastore/image", params={"image": uid}).content)
    assert np.allclose(read.affine, image.affine, atol=1e-4)
    assert np.array_equal(np.asarray(read.dataobj), mask)
    info = get(server, "/datastore/label/info", params={"label": uid, "tag": "final"}).json()
    assert [item["name"] for item in info["label_info"]] == ["edema", "tumor"]


def wait_until_forgotten(server: Server, uid: str) -> None:
    """The host follows its folder with a delay."""
    deadline = time.monotonic() + FORGET_LIMIT_S
    while get(server, "/datastore/label/info", params={"label": uid, "tag": "final"}).json():
        assert time.monotonic() < deadline, "the server still knows a label whose file is gone"
        time.sleep(0.1)


def test_case_is_counted_once_and_not_offered_again(server: Server, pacs: Orthanc, uids: dict[str, str], tmp_path: Path) -> None:
    before = len(stored_segmentations(pacs))
    mask = np.zeros(SHAPE, dtype=np.uint8)
    for depth in (3, 4):
        mask[5:9, 5:9, :depth] = 1
        assert submit(server, uids["ct"], mask, ["edema", "tumor"], tmp_path).status_code == 200
    assert len(stored_segmentations(pacs)) == before + 2
    assert counts(server) == (2, 1)
    read = nifti(get(server, "/datastore/label", params={"label": uids["ct"], "tag": "final"}).content)
    assert np.array_equal(np.asarray(read.dataobj), mask), "the newest label is the one that counts"
    for strategy in ("random", "uncertain", "next", "first"):
        offered = requests.post(f"{server.url}/activelearning/{strategy}", json={}, timeout=60).json()
        assert offered["id"] == uids["mr"]
        assert (offered["Modality"], offered["PatientID"]) == ("MR", "mr")
        assert offered["StudyInstanceUID"] == str(pydicom.dcmread(next(iter_files(server, uids["mr"]))).StudyInstanceUID)


def iter_files(server: Server, uid: str) -> Iterator[Path]:
    yield from (server.log.parent / "cache").rglob(f"{uid}/*.dcm")


def test_series_is_fetched_again_when_it_has_grown(server: Server, pacs: Orthanc, uids: dict[str, str], series: dict[str, Path]) -> None:
    assert ask_mask(server.url, uids["mr"])[0].shape == SHAPE
    last = pydicom.dcmread(series["mr"] / f"IM{SHAPE[2] - 1:04d}")
    position = [float(value) for value in last.ImagePositionPatient]
    last.ImagePositionPatient = [position[0], position[1], position[2] - 5.0]
    last.InstanceNumber = SHAPE[2] + 1
    last.SOPInstanceUID = last.file_meta.MediaStorageSOPInstanceUID = f"{last.SOPInstanceUID[:50]}.77"
    last.save_as(series["mr"] / "IM9999")
    assert pacs.store([series["mr"] / "IM9999"]) == 1
    for _ in range(20):
        if ask_mask(server.url, uids["mr"])[0].shape == (*SHAPE[:2], SHAPE[2] + 1):
            return
    raise AssertionError("the server still segments the series as it was")


def test_pacs_that_is_gone_is_said_to_be(pacs: Orthanc, server: Server) -> None:
    """Last in this file: it ends the PACS."""
    pacs.stop()
    for path in ("/proxy/dicom/qido/studies", "/proxy/dicom/wado/studies/1.2.3"):
        assert_refused(get(server, path), 502, "DICOMweb server")


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["--modality", "MR;CT"], {}, "modality"),
        (["--dicomweb-user", "ann"], {}, "MONAI_LABEL_DICOMWEB_PASSWORD"),
        ([], {"MONAI_LABEL_DICOMWEB_PASSWORD": "secret"}, "--dicomweb-user"),
        (["--studies", "http://ann:secret@127.0.0.1:1/dicom-web"], {}, "no name and password in the URL"),
        (["--dicomweb-refresh-s", "-1"], {}, "must not be negative"),
        ([], {"MONAI_LABEL_DICOMWEB_SEARCH_FILTER": '{"Modality": "MR"}'}, "--modality"),
    ],
)
def test_options_that_cannot_be_followed_end_with_a_message(
    arguments: list[str], environment: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the host's modules, while they load
        serve = importlib.import_module("lib.serve")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        serve.main(["--studies", f"http://127.0.0.1:{find_free_port()}/dicom-web", *arguments])
    shown = capsys.readouterr().err
    assert ended.value.code == 2 and words in shown, shown
    assert "secret" not in shown

"""Results that are kept: made over HTTP, looked at, accepted or rejected once; on a folder with NIfTI, a picture and a DICOM series."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import requests

from app_cdm.data.dicom_source import read_sources, to_planes
from app_cdm.data.volume import read_volume
from tests.host.answers import METHODS, ask_mask, assert_refused, nifti, voxels
from tests.host.server_process import Server
from tests.host.studies import SHAPE, head, write_dicom_series, write_nifti, write_picture

# ITK's binary modules warn while they load, and die if the warning is made an error.
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")

NO_RESULT = "0" * 32


@pytest.fixture(scope="module")
def server(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of its own: accepted labels must not meet those of other tests."""
    folder = tmp_path_factory.mktemp("result_studies")
    for seed in range(4):
        write_nifti(folder / f"case{seed}.nii.gz", head(seed))
    write_picture(folder / "picture.png")
    (folder / "patient" / "uid.txt").write_text(write_dicom_series(folder / "patient" / "flair"))
    running = Server(folder, tmp_path_factory.mktemp("result_server"), ["--model-dir", str(model_dir)])
    try:
        yield running.wait()
    finally:
        code = running.stop()
    assert code == 0


@pytest.fixture(scope="module")
def series(server: Server) -> str:
    return (server.studies / "patient" / "uid.txt").read_text()


def make(server: Server, image: str, task: str = "student", params: dict[str, Any] | None = None) -> dict[str, Any]:
    response = requests.post(f"{server.url}/results/{task}", params={"image": image}, json=params, timeout=120)
    assert response.status_code == 200, response.text
    return response.json()


def decide(server: Server, result: str, verdict: str, user: str = "ann") -> requests.Response:
    return requests.post(f"{server.url}/results/{result}/{verdict}", params={"user": user}, timeout=60)


def get(server: Server, path: str) -> requests.Response:
    return requests.get(f"{server.url}{path}", timeout=60)


def tags(server: Server, image: str) -> Any:
    return get(server, f"/tags/{image}").json()


def num_actions(server: Server, image: str) -> int:
    return len({event["action"] for event in get(server, f"/tags/{image}/history").json()["history"]})


@pytest.mark.parametrize("method", METHODS)
def test_a_result_holds_the_mask_and_maps_of_the_same_inference(server: Server, method: str) -> None:
    mask, reply = ask_mask(server.url, "case0", {"seed": 3} if method == "cdm_saliency" else {}, model=method)
    made = make(server, "case0", method, {"seed": 3} if method == "cdm_saliency" else None)
    assert (made["image"], made["model"], made["method"], made["labels"]) == ("case0", method, method, {"edema": 1, "tumor": 2})
    for key in ("model_version", "class_scores", "slice_scores", "slicing_axis", "settings"):
        assert made[key] == reply[key], key
    kept = nifti(get(server, f"/results/{made['result']}/mask").content)
    assert kept.get_data_dtype() == np.uint8 and np.array_equal(np.asarray(kept.dataobj), mask)
    source = read_volume(server.studies / "case0.nii.gz")
    np.testing.assert_allclose(kept.affine, source.affine, atol=1e-5)
    assert made["voxels"] == {name: int((mask == value).sum()) for name, value in made["labels"].items()}
    assert made["volumes_ml"]["tumor"] == pytest.approx(made["voxels"]["tumor"] * np.prod(source.spacing_mm) / 1000, rel=0.01)
    for name, url in made["maps"].items():
        values = nifti(get(server, url).content)
        assert values.get_data_dtype() == np.float32 and values.shape == SHAPE, name
        array = np.asarray(values.dataobj)
        assert array.min() >= 0 and array.max() <= 1 and len(np.unique(array)) > 10
        np.testing.assert_allclose(values.affine, source.affine, atol=1e-5)
    assert get(server, f"/results/{made['result']}").json() == made | {"decision": None}
    assert made["result"] in [entry["result"] for entry in get(server, "/results/").json()["results"]]


def test_maps_are_those_that_infer_stores(server: Server) -> None:
    made = make(server, "case1", "cldf")
    _, reply = ask_mask(server.url, "case1", {"store_saliency": True}, model="cldf")
    for entry in reply["saliency"]:
        assert np.array_equal(voxels(get(server, entry["url"]).content), voxels(get(server, made["maps"][entry["class"]]).content))


def test_accept_stores_that_very_mask_once_and_tags_it(server: Server) -> None:
    made = make(server, "case0")
    mask = voxels(get(server, f"/results/{made['result']}/mask").content)
    accepted = decide(server, made["result"], "accept")
    assert accepted.status_code == 200, accepted.text
    answer = accepted.json()
    slices = {name: np.flatnonzero((mask == value).any(axis=(0, 1))) for name, value in made["labels"].items()}
    expected = {name: [[int(held[0]), int(held[-1])]] if len(held) else False for name, held in slices.items()}
    assert answer == {"image": "case0", "label": "case0", "tags": expected}
    stored = server.studies / "labels" / "final" / "case0.nii.gz"
    assert np.array_equal(read_volume(stored).array, mask)
    found = tags(server, "case0")
    assert found["tags"] == expected
    assert {(item["user"], item["provenance"]) for item in found["details"].values()} == {("ann", "mask")}
    info = get(server, "/datastore/label/info?label=case0&tag=final").json()
    assert (info["origin"], info["model_version"], info["result"]) == ("accepted auto-segmentation", made["model_version"], made["result"])
    assert [segment["name"] for segment in info["label_info"]] == ["edema", "tumor"]
    before, actions = stored.stat().st_mtime_ns, num_actions(server, "case0")
    assert decide(server, made["result"], "accept", "ben").json() == answer
    assert stored.stat().st_mtime_ns == before and num_actions(server, "case0") == actions
    decision = get(server, f"/results/{made['result']}").json()["decision"]
    assert (decision["verdict"], decision["user"]) == ("accepted", "ann")
    assert_refused(decide(server, made["result"], "reject"), 409, "accepted by ann", "run again")


def test_reject_tags_the_classes_absent_once(server: Server) -> None:
    made = make(server, "case1", params={"label_prompt": [2]})
    assert made["labels"] == {"tumor": 2} and set(made["maps"]) == {"tumor"}
    answer = decide(server, made["result"], "reject")
    assert answer.json() == {"image": "case1", "tags": {"tumor": False}}
    assert tags(server, "case1")["tags"] == {"edema": None, "tumor": False}
    assert decide(server, made["result"], "reject").json() == answer.json() and num_actions(server, "case1") == 1
    assert not (server.studies / "labels" / "final" / "case1.nii.gz").exists()
    assert_refused(decide(server, made["result"], "accept"), 409, "rejected by ann")


def test_an_accepted_empty_mask_means_absent(server: Server) -> None:
    made = make(server, "case2", params={"gate": "auto", "gate_threshold": 1.0})
    assert made["voxels"] == {"edema": 0, "tumor": 0}
    assert decide(server, made["result"], "accept").json()["tags"] == {"edema": False, "tumor": False}
    assert not read_volume(server.studies / "labels" / "final" / "case2.nii.gz").array.any()


def test_simultaneous_clicks_store_once(server: Server) -> None:
    made = make(server, "case3")
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda verdict: decide(server, made["result"], verdict), ["accept", "reject"] * 3))
    for accepted in answers[::2]:
        assert accepted.status_code == answers[0].status_code and accepted.json() == answers[0].json()
    assert {answers[0].status_code, answers[1].status_code} == {200, 409}
    assert num_actions(server, "case3") == 1


def test_another_image_under_the_same_id_is_noticed(server: Server, tmp_path: Path) -> None:
    image = write_nifti(tmp_path / "image.nii.gz", head(8))
    upload = {"file": ("image.nii.gz", image.read_bytes())}
    requests.put(f"{server.url}/datastore/image?image=changing", files=upload, timeout=30).raise_for_status()
    made, other = make(server, "changing"), make(server, "changing")
    (server.studies / "changing.nii.gz").write_bytes(image.read_bytes())  # the same once more
    assert decide(server, made["result"], "accept").status_code == 200
    write_nifti(server.studies / "changing.nii.gz", head(9))
    for verdict in ("accept", "reject"):
        assert_refused(decide(server, other["result"], verdict), 409, "changed", "run again")
    requests.delete(f"{server.url}/datastore/image?id=changing", timeout=30).raise_for_status()
    assert_refused(decide(server, other["result"], "accept"), 404, "changing")


@pytest.mark.parametrize("name", [NO_RESULT, "x", "..", "%2e%2e", "..%2f..%2fetc", "A" * 32, "0" * 31 + "/", "%00" * 32])
def test_ids_that_are_none(server: Server, name: str) -> None:
    for method, path in (
        ("GET", ""),
        ("GET", "/mask"),
        ("GET", "/map/tumor"),
        ("POST", "/accept"),
        ("POST", "/reject"),
        ("POST", "/dicom"),
    ):
        prepared = requests.Request(method, f"{server.url}/results/").prepare()
        prepared.url = f"{server.url}/results/{name}{path}"
        with requests.Session() as session:
            response = session.send(prepared, timeout=30)
        assert response.status_code in (404, 405), (method, prepared.url, response.status_code)
        assert isinstance(response.json()["detail"], str)
    assert_refused(get(server, f"/results/{NO_RESULT}"), 404, "run again")


def test_bad_requests(server: Server) -> None:
    run = f"{server.url}/results"
    assert_refused(requests.post(f"{run}/unet?image=case0", timeout=30), 404, "unet")
    assert_refused(requests.post(f"{run}/student?image=nothing", timeout=30), 404, "nothing")
    assert_refused(requests.post(f"{run}/student?image=../case0", timeout=30), 400, "not allowed")
    assert_refused(requests.post(f"{run}/student", timeout=30), 400, "no image")
    assert_refused(requests.post(f"{run}/student?image=case0", json={"image": "/etc/passwd"}, timeout=30), 400, "image")
    assert_refused(requests.post(f"{run}/student?image=case0", json=["a"], timeout=30), 400, "JSON object")
    assert_refused(requests.post(f"{run}/student?image=case0", data="{", timeout=30), 400, "JSON")
    assert_refused(requests.post(f"{run}/student?image=case0", json={"gate": "perhaps"}, timeout=30), 400, "gate")
    assert_refused(requests.post(f"{run}/student?image=case0", json={"save_label": True}, timeout=30), 400, "save_label", "accept")
    made = make(server, "case1")["result"]
    assert_refused(get(server, f"/results/{made}/map/liver"), 404, "liver", "tumor")
    assert_refused(decide(server, made, "accept", user=""), 400, "user")
    assert_refused(requests.post(f"{run}/{made}/accept", headers={"Origin": "http://elsewhere.example"}, timeout=30), 403, "origin")
    assert_refused(requests.post(f"{run}/{made}/dicom?kind=seg", timeout=30), 409, "case1", "NIfTI")
    assert_refused(requests.post(f"{run}/{made}/dicom?kind=rtstruct", timeout=30), 400, "rtstruct")


def test_a_picture_has_no_millilitres(server: Server) -> None:
    made = make(server, "picture")
    assert made["volumes_ml"] == {"edema": None, "tumor": None} and sum(made["voxels"].values()) > 0
    assert decide(server, made["result"], "accept").json()["tags"] == {
        name: [[0, 0]] if made["voxels"][name] else False for name in made["labels"]
    }
    assert_refused(requests.post(f"{server.url}/results/{made['result']}/dicom?kind=map&class=tumor", timeout=30), 409, "map/tumor")


def test_dicom_series_of_a_folder_is_left_alone_and_its_objects_can_be_downloaded(server: Server, series: str) -> None:
    folder = server.studies / "patient"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    made = make(server, series)
    mask = nifti(get(server, f"/results/{made['result']}/mask").content)
    answer = decide(server, made["result"], "accept", "Müller").json()
    assert answer["label"] == series and tags(server, series)["tags"] == answer["tags"]
    assert np.array_equal(read_volume(server.studies / "labels" / "final" / f"{series}.nii.gz").array, np.asarray(mask.dataobj))
    response = requests.post(f"{server.url}/results/{made['result']}/dicom", timeout=60)
    assert response.status_code == 200 and response.headers["content-type"] == "application/dicom"
    seg = pydicom.dcmread(io.BytesIO(response.content))
    assert seg.Modality == "SEG" and str(seg.ContentCreatorName) == "Müller^"
    assert (
        seg.SegmentSequence[0].SegmentAlgorithmType == "AUTOMATIC"
        and made["model_version"] in seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion
    )
    sources = read_sources(sorted((folder / "flair").iterdir()))
    values = np.asarray(nifti(get(server, made["maps"]["tumor"]).content).dataobj)
    again = requests.post(f"{server.url}/results/{made['result']}/dicom?kind=map&class=tumor", timeout=60)
    parametric = pydicom.dcmread(io.BytesIO(again.content))
    assert np.array_equal(parametric.pixel_array, to_planes(values, mask.affine, sources))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_results_survive_a_restart(model_dir: Path, tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    studies.mkdir()
    write_nifti(studies / "case.nii.gz", head(1))
    first = Server(studies, tmp_path, ["--model-dir", str(model_dir)]).wait()
    made, rejected = make(first, "case"), make(first, "case", "cldf")
    decide(first, rejected["result"], "reject").raise_for_status()
    first.process.kill()
    first.process.wait()
    (tmp_path / "tmp").rename(tmp_path / "tmp_before")
    second = Server(studies, tmp_path, ["--model-dir", str(model_dir)]).wait()
    try:
        assert get(second, f"/results/{made['result']}").json() == made
        listed = get(second, "/results/").json()["results"]
        assert [(entry["result"], entry["decision"]) for entry in listed] == [(rejected["result"], "rejected"), (made["result"], None)]
        assert decide(second, made["result"], "accept").status_code == 200
        assert_refused(decide(second, rejected["result"], "accept"), 409, "rejected")
    finally:
        assert second.stop() == 0

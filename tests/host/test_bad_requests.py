"""Everything that can be wrong with a request: a 4xx, JSON, and a detail that says what to do."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import requests
from PIL import Image

from tests.host.answers import MODEL, assert_refused
from tests.host.server_process import Server
from tests.host.studies import head, write_nifti

JSON = {"Content-Type": "application/json"}
UNUSABLE = {
    "empty.nii.gz": (400, "empty"),
    "text.nii.gz": (422, "NIfTI"),
    "text.nrrd": (422, "NRRD"),
    "text.png": (422, ""),
    "truncated.nii.gz": (422, ""),
    "four_dimensions.nii.gz": (422, "4"),
    "all_nan.nii.gz": (422, ""),
    "no_voxels.nii.gz": (422, ""),
    "constant.nii.gz": (422, ""),
}


@pytest.mark.parametrize("name", sorted(UNUSABLE))
def test_unusable_upload_is_refused_and_leaves_nothing_behind(url: str, server: Server, bad_images: Path, name: str) -> None:
    status, word = UNUSABLE[name]
    with (bad_images / name).open("rb") as file:
        response = requests.post(f"{url}/infer/{MODEL}", files={"file": file}, timeout=60)
    assert_refused(response, status, word)
    assert server.leftovers() == []


@pytest.mark.parametrize("name", ["empty.nii.gz", "text.nii.gz", "four_dimensions.nii.gz"])
def test_unusable_image_does_not_enter_the_datastore(url: str, server: Server, bad_images: Path, name: str) -> None:
    with (bad_images / name).open("rb") as file:
        response = requests.put(f"{url}/datastore/image?image=broken", files={"file": file}, timeout=60)
    assert_refused(response, UNUSABLE[name][0])
    assert not list(server.studies.glob("broken*"))


@pytest.mark.parametrize("name", ["empty.nii.gz", "text.nrrd"])
def test_unusable_label_is_not_stored(url: str, server: Server, bad_images: Path, name: str) -> None:
    with (bad_images / name).open("rb") as file:
        response = requests.put(f"{url}/datastore/label?image=case2&tag=broken", files={"label": file}, timeout=60)
    assert_refused(response, UNUSABLE[name][0])
    assert not (server.studies / "labels" / "broken").exists()


def test_unknown_kind_of_file_is_refused(url: str) -> None:
    for route, field in ((f"infer/{MODEL}", "file"), ("datastore/image", "file"), ("datastore/label?image=case0", "label")):
        method = "POST" if field == "file" and route.startswith("infer") else "PUT"
        response = requests.request(method, f"{url}/{route}", files={field: ("run.sh", b"#!/bin/sh")}, timeout=10)
        assert_refused(response, 400, "run.sh", ".nii.gz")


@pytest.mark.parametrize(
    ("method", "path", "status", "word"),
    [
        ("POST", "/infer/nope?image=case0", 404, MODEL),
        ("POST", f"/infer/{MODEL}?image=nope", 404, "nope"),
        ("POST", f"/infer/{MODEL}", 400, "?image="),
        ("POST", f"/infer/{MODEL}?image=case0&output=dicom_seg", 400, "DICOMweb"),
        ("POST", f"/infer/{MODEL}?session_id=nope", 404, "session"),
        ("POST", "/infer/wsi_v2/nope?image=case0", 404, "whole-slide"),
        ("POST", "/batch/infer/nope", 404, MODEL),
        ("POST", "/train/nope", 404, "trainer"),
        ("POST", "/scoring/nope", 404, "scoring"),
        ("POST", "/activelearning/nope", 404, "random"),
        ("GET", "/datastore/image?image=nope", 404, "nope"),
        ("GET", "/datastore/image/info?image=nope", 404, "nope"),
        ("GET", "/datastore/label?label=case0&tag=nope", 404, "tag"),
        ("GET", "/datastore/label?label=nope&tag=final", 404, "nope"),
        ("GET", "/datastore/label/info?label=case0&tag=nope", 404, "tag"),
        ("DELETE", "/datastore/label?id=case0&tag=nope", 404, "tag"),
        ("DELETE", "/datastore/image?id=nope", 404, "nope"),
        ("GET", "/session/nope?image=true", 404, "session"),
        ("GET", "/model/nope", 404, "model"),
        ("DELETE", f"/model/{MODEL}", 400, "folder"),
        ("GET", "/proxy/dicom/studies", 404, "DICOMweb"),
        ("GET", "/logs/?lines=99999999999999999999", 400, "lines"),
        ("GET", "/logs/?lines=-1", 400, "lines"),
    ],
)
def test_unknown_names(url: str, method: str, path: str, status: int, word: str) -> None:
    assert_refused(requests.request(method, f"{url}{path}", timeout=10), status, word)


@pytest.mark.parametrize("text", ["{mode: parallel}", "[1, 2]", '"parallel"', "{"])
def test_params_that_are_no_json_object(url: str, text: str) -> None:
    assert_refused(requests.post(f"{url}/infer/{MODEL}?image=case0", data={"params": text}, timeout=10), 400, "params", "JSON")
    assert_refused(requests.put(f"{url}/datastore/image/info?image=case0", data={"info": text}, timeout=10), 400, "info", "JSON")


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e999", '"\\ud83d"', '{"\\ude00": 1}'])
def test_json_that_cannot_be_stored_is_refused_everywhere(url: str, tmp_path: Path, value: str) -> None:
    text = f'{{"note": [{value}]}}'
    image = write_nifti(tmp_path / "volume.nii.gz", head()).read_bytes()
    assert_refused(requests.put(f"{url}/datastore/image/info?image=case0", data={"info": text}, timeout=10), 400, "cannot carry")
    for route, field in (("image?image=new", "file"), ("label?image=case0&tag=new", "label")):
        files = {field: ("volume.nii.gz", image)}
        assert_refused(requests.put(f"{url}/datastore/{route}", data={"params": text}, files=files, timeout=10), 400, "cannot carry")
    assert_refused(requests.post(f"{url}/infer/{MODEL}?image=case0", data={"params": text}, timeout=10), 400, "cannot carry")
    assert_refused(requests.put(f"{url}/tags/case0", data=text, timeout=10), 400, "cannot carry")
    sampled = requests.post(f"{url}/activelearning/first", data=f'{{"client_id": {value}}}', headers=JSON, timeout=10)
    assert_refused(sampled, 400, "cannot carry")
    assert_refused(requests.post(f"{url}/batch/infer/{MODEL}", data=text, headers=JSON, timeout=10), 400, "cannot carry")
    assert "note" not in requests.get(f"{url}/datastore/image/info?image=case0", timeout=10).json()


def test_whole_characters_and_finite_numbers_are_stored(url: str) -> None:
    info = '{"note": ["\\ud83d\\ude00", 1e308, null]}'
    assert requests.put(f"{url}/datastore/image/info?image=case1", data={"info": info}, timeout=10).status_code == 200
    assert requests.get(f"{url}/datastore/image/info?image=case1", timeout=10).json()["note"] == ["\U0001f600", 1e308, None]


def test_batch_with_bad_options_does_not_start(url: str) -> None:
    assert_refused(requests.post(f"{url}/batch/infer/{MODEL}", json={"mode": "magic"}, timeout=10), 400, "mode")


@pytest.mark.parametrize("size", [-1, "many", [1], 1.5])
@pytest.mark.parametrize("query", ["", "?run_sync=true"])
def test_batch_of_no_number_of_images_does_not_start(url: str, size: object, query: str) -> None:
    reply = requests.post(f"{url}/batch/infer/{MODEL}{query}", json={"max_batch_size": size}, timeout=10)
    assert_refused(reply, 400, "max_batch_size")


LONG, HUGE = "9" * 5000, "9" * 400


def test_numbers_that_python_does_not_read_are_refused(url: str) -> None:
    text = f'{{"value": {LONG}}}'
    assert_refused(requests.put(f"{url}/tags/case0", data=text, timeout=10), 400, "too long")
    assert_refused(requests.post(f"{url}/tags/bulk", data=text, timeout=10), 400, "too long")
    assert_refused(requests.post(f"{url}/results/{MODEL}?image=case0", data=text, timeout=10), 400, "too long")
    assert_refused(requests.post(f"{url}/infer/{MODEL}?image=case0", data={"params": text}, timeout=10), 400, "too long")
    assert_refused(requests.put(f"{url}/datastore/image/info?image=case0", data={"info": text}, timeout=10), 400, "too long")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fixed_threshold", HUGE),
        ("noise_levels", f"[{HUGE}]"),
        ("label_prompt", f'"{"[" * 100_000}"'),
        ("label_prompt", f'"[{LONG}]"'),
    ],
)
def test_parameters_beyond_all_numbers_are_refused(url: str, name: str, value: str) -> None:
    text = f'{{"{name}": {value}}}'
    assert_refused(requests.post(f"{url}/infer/{MODEL}?image=case0", data={"params": text}, timeout=10), 400, name)


@pytest.mark.parametrize("name", ["minutes", "seed", "epochs"])
@pytest.mark.parametrize("route", ["train/weak_label", "train/"])
def test_options_of_training_beyond_all_numbers_are_refused(url: str, name: str, route: str) -> None:
    assert_refused(requests.post(f"{url}/{route}", data=f'{{"{name}": {HUGE}}}', headers=JSON, timeout=10), 400, name)


def test_a_strategy_is_named_in_the_url_alone(url: str) -> None:
    for value in (["x"], "first"):
        assert_refused(requests.post(f"{url}/activelearning/next", json={"strategy": value}, timeout=10), 400, "strategy")


def test_json_where_a_form_is_read_is_refused(url: str) -> None:
    options = {"fixed_threshold": 0.9}
    assert_refused(requests.post(f"{url}/infer/{MODEL}?image=case0", json=options, timeout=10), 400, "form")
    assert_refused(requests.put(f"{url}/datastore/image/info?image=case0", json={"note": 1}, timeout=10), 400, "form")


def test_what_is_no_picture_is_not_given_to_other_programs(url: str, tmp_path: Path) -> None:
    """Pillow would have Ghostscript run PostScript, and take one picture of many."""
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    pages = [Image.new("L", (8, 8), value) for value in (10, 200)]
    pages[0].save(tmp_path / "pages.tiff", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "moving.png", save_all=True, append_images=pages[1:])
    for content, said in (
        (postscript, "PNG or JPEG"),
        ((tmp_path / "pages.tiff").read_bytes(), "PNG or JPEG"),
        ((tmp_path / "moving.png").read_bytes(), "several"),
    ):
        files = {"file": ("picture.png", content)}
        assert_refused(requests.post(f"{url}/infer/{MODEL}", files=files, timeout=30), 422, said)
        assert_refused(requests.put(f"{url}/datastore/image?image=drawn", files=files, timeout=30), 422, said)
        label = {"label": ("picture.png", content)}
        assert_refused(requests.put(f"{url}/datastore/label?image=case2&tag=drawn", files=label, timeout=30), 422, said)


def test_voxels_that_begin_beyond_all_files_are_refused(url: str, tmp_path: Path) -> None:
    content = bytearray(write_nifti(tmp_path / "volume.nii", head()).read_bytes())
    content[108:112] = struct.pack("<f", 1e18)
    reply = requests.post(f"{url}/infer/{MODEL}", files={"file": ("volume.nii", bytes(content))}, timeout=30)
    assert_refused(reply, 422, "NIfTI")


def test_files_of_one_name_in_a_session_are_all_kept(url: str, server: Server) -> None:
    files = sorted((server.studies / "patient" / "flair").iterdir())
    session = requests.put(f"{url}/session/", files=[("files", (f"{file.stem}/IM.1.dcm", file.read_bytes())) for file in files], timeout=30)
    name = session.json()["session_id"]
    reply = requests.post(f"{url}/infer/{MODEL}", params={"session_id": name, "output": "json"}, timeout=60)
    assert reply.status_code == 200, reply.text
    assert len(reply.json()["slice_scores"]["tumor"]) == len(files) > 1
    assert_refused(requests.get(f"{url}/session/{name}?image=true", timeout=10), 400, "several files")


def test_errors_leave_no_uploads_in_the_log_as_tracebacks(server: Server) -> None:
    """A caller's mistake is one line in the log; a traceback would mean that nobody foresaw it."""
    log = server.log.read_text()
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:3000]

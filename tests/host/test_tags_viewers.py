"""Tags as viewers make and use them: Submit Label in Slicer, Next Sample, and a server without classes."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import requests

from app_cdm.data.volume import Volume, write_map, write_mask
from tests.host.answers import assert_refused
from tests.host.server_process import Server
from tests.host.studies import AFFINE, SHAPE, head, write_nifti

# Slicer's client leaves closing its sockets and files to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning"),
]

SEGMENTS = {"label_info": [{"name": "edema", "idx": 1}, {"name": "tumor", "idx": 2}]}


@pytest.fixture
def client(slicer_library: ModuleType, tag_server: Server, tmp_path: Path) -> Any:
    return slicer_library.MONAILabelClient(tag_server.url, tmpdir=str(tmp_path), client_id="dr ann")


@pytest.fixture
def image(tag_server: Server, tmp_path: Path) -> str:
    """An image of the datastore for one test."""
    name = f"image_{tmp_path.name}"
    file = write_nifti(tmp_path / "image.nii.gz", head(3))
    with file.open("rb") as content:
        response = requests.put(f"{tag_server.url}/datastore/image", params={"image": name}, files={"file": content}, timeout=30)
    response.raise_for_status()
    return name


def label(folder: Path, values: dict[int, list[int]], suffix: str = ".nrrd") -> str:
    """A label file with each value on some slices."""
    mask = np.zeros(SHAPE, dtype=np.uint8)
    for value, slices in values.items():
        mask[10 * value : 10 * value + 4, 20:24, slices] = value
    path = folder / f"label{suffix}"
    write_mask(mask, Volume(mask.astype(np.float32), AFFINE), path)
    return str(path)


def tags(server: Server, image: str) -> Any:
    return requests.get(f"{server.url}/tags/{image}", timeout=30).json()


@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz"])
def test_submit_label_becomes_tags_and_is_still_stored(client: Any, tag_server: Server, image: str, tmp_path: Path, suffix: str) -> None:
    saved = client.save_label(image, label(tmp_path, {2: [1, 4]}, suffix), params=dict(SEGMENTS))
    assert saved["label"] == image and saved["tags"] == {"edema": False, "tumor": [[1, 4]]}
    found = tags(tag_server, image)
    assert found["tags"] == saved["tags"]
    assert (found["details"]["tumor"]["user"], found["details"]["tumor"]["provenance"]) == ("dr ann", "mask")
    assert (tag_server.studies / "labels" / "final" / f"{image}{suffix}").is_file()
    assert client.datastore()["objects"][image]["labels"]["final"]["info"]["label_info"] == SEGMENTS["label_info"]
    client.save_label(image, label(tmp_path, {}, suffix), params=dict(SEGMENTS))
    assert tags(tag_server, image)["tags"] == {"edema": False, "tumor": False}
    requests.post(f"{tag_server.url}/tags/{image}/undo", timeout=30).raise_for_status()
    assert tags(tag_server, image)["tags"] == {"edema": False, "tumor": [[1, 4]]}


def test_segments_in_another_order_and_without_names(client: Any, image: str, tmp_path: Path) -> None:
    swapped = {"label_info": [{"name": "tumor", "idx": 2}, {"name": "edema", "idx": 3}]}
    both = {1: [0, 1], 2: [3]}
    assert client.save_label(image, label(tmp_path, both), params=swapped)["tags"] == {"edema": [[3, 3]], "tumor": [[0, 1]]}
    assert client.save_label(image, label(tmp_path, both))["tags"] == {"edema": [[0, 1]], "tumor": [[3, 3]]}


def test_what_nobody_judged_gives_no_tags(client: Any, tag_server: Server, image: str, tmp_path: Path) -> None:
    assert "tags" not in client.save_label(image, label(tmp_path, {1: [2]}), tag="original")
    assert tags(tag_server, image)["tags"] == {"edema": None, "tumor": None}


def test_label_of_another_place_is_stored_but_gives_no_tags(client: Any, tag_server: Server, image: str, tmp_path: Path) -> None:
    mask = np.zeros((8, 8, 3), dtype=np.uint8)
    mask[2:4, 2:4] = 1
    far = AFFINE.copy()
    far[:3, 3] += 400
    write_mask(mask, Volume(mask.astype(np.float32), far), tmp_path / "far.nrrd")
    saved = client.save_label(image, str(tmp_path / "far.nrrd"), params=dict(SEGMENTS))
    assert saved["label"] == image and "outside the image" in saved["tags_refused"]
    assert tags(tag_server, image)["tags"] == {"edema": None, "tumor": None}


@pytest.mark.parametrize(("value", "shown"), [(255, "255"), (0.7, "0.7"), (7, "7")])
def test_a_file_that_is_no_label_is_stored_but_gives_no_tags(
    client: Any, tag_server: Server, image: str, tmp_path: Path, value: float, shown: str
) -> None:
    values = np.zeros(SHAPE, dtype=np.float32)
    values[4:9, 4:9, 2] = value
    write_map(values, Volume(values, AFFINE), tmp_path / "label.nii.gz")
    for params in (dict(SEGMENTS), {}):
        saved = client.save_label(image, str(tmp_path / "label.nii.gz"), params=params)
        assert saved["label"] == image and f"the label holds {shown}" in saved["tags_refused"]
    assert tags(tag_server, image)["tags"] == {"edema": None, "tumor": None}


def test_segments_of_other_names_are_allowed_and_two_of_one_class_both_count(client: Any, image: str, tmp_path: Path) -> None:
    named = {"label_info": [{"name": "Segment_1", "idx": 1}, {"name": "tumor", "idx": 2}, {"name": "tumor", "idx": 3}]}
    saved = client.save_label(image, label(tmp_path, {1: [0], 2: [2], 3: [4]}), params=named)
    assert saved["tags"] == {"edema": False, "tumor": [[2, 4]]}


def test_an_image_whose_file_vanished_is_unknown(client: Any, tag_server: Server, image: str, tmp_path: Path) -> None:
    """Before the index notices: nothing is stored for it."""
    file, labels = label(tmp_path, {2: [1]}), tag_server.studies / "labels" / "final"
    (tag_server.studies / f"{image}.nii.gz").unlink()
    refused = requests.put(f"{tag_server.url}/tags/{image}", json={"tags": {"tumor": [[1, 2]]}}, timeout=30)
    assert_refused(refused, 404, image)
    with open(file, "rb") as content:
        refused = requests.put(f"{tag_server.url}/datastore/label", params={"image": image}, files={"label": content}, timeout=30)
    assert_refused(refused, 404, image)
    assert not list(labels.glob(f"{image}*"))
    requests.post(f"{tag_server.url}/reload", timeout=30).raise_for_status()


def test_strategies_pass_over_tagged_images_unless_asked(client: Any, tag_server: Server) -> None:
    every = sorted(client.datastore()["objects"])
    assert set(client.info()["strategies"]) == {"uncertain", "next", "random", "untagged", "first"}
    body = {"tags": {name: {"edema": False, "tumor": True} for name in every if name not in ("case0", "case2")}}
    body["tags"] |= {"case0": {"edema": True, "tumor": None}, "case2": {"edema": None, "tumor": None}}
    requests.post(f"{tag_server.url}/tags/bulk", json=body, timeout=30).raise_for_status()
    assert {client.next_sample("first", {})["id"] for _ in range(2)} == {"case0"}
    offered = client.next_sample("untagged", {})
    assert offered["id"] in ("case0", "case2") and offered["name"].endswith(".nii.gz") and Path(offered["path"]).is_file()
    assert {client.next_sample(strategy, {})["id"] for strategy in ("uncertain", "next", "random", "untagged")} <= {"case0", "case2"}
    requests.put(f"{tag_server.url}/tags/case0", json={"tags": {"tumor": False}}, timeout=30).raise_for_status()
    assert {client.next_sample(strategy, {})["id"] for strategy in ("first", "uncertain", "next", "random", "untagged")} == {"case2"}
    requests.put(f"{tag_server.url}/tags/case2", json={"tags": {"edema": False, "tumor": False}}, timeout=30).raise_for_status()
    assert client.next_sample("untagged", {}) == client.next_sample("random", {}) == client.next_sample("first", {}) == {}
    assert client.next_sample("first", {"include_tagged": True})["id"] == every[0]
    assert client.next_sample("random", {"include_tagged": True})["id"] in every
    refused = requests.post(f"{tag_server.url}/activelearning/first", json={"include_tagged": "perhaps"}, timeout=30)
    assert_refused(refused, 400, "include_tagged")
    assert tag_server.url and client.info()["datastore"]["completed"] == len(every)


def test_without_model_and_classes_nothing_can_be_tagged(servers: dict[str, Server]) -> None:
    url = servers["bare"].url
    if requests.get(f"{url}/info/", timeout=30).json()["models"]:
        pytest.skip("a model was published meanwhile")
    refused = requests.put(f"{url}/tags/case", json={"tags": {"tumor": True}}, timeout=30)
    assert_refused(refused, 404, "--classes")
    assert requests.get(f"{url}/tags/summary", timeout=30).json()["classes"] == {}


def test_classes_of_the_model(url: str) -> None:
    tags_of_case = requests.get(f"{url}/tags/case2", timeout=30).json()["tags"]
    assert set(tags_of_case) == {"edema", "tumor"}
    text = json.dumps({"tags": {"glioma": True}})
    assert_refused(requests.put(f"{url}/datastore/image/info?image=case2", data={"info": text}, timeout=30), 404, "edema", "tumor")

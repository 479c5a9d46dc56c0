"""Breast ultrasound through the same loop: pictures, two classes, dark lesions; tags over REST, training, masks. Real data."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image

from tests.host.server_process import Server
from tests.host.test_training import train, wait_for

BUSI = Path(os.environ.get("APP_CDM_DATA", Path(__file__).parents[3] / "shared" / "data")) / "busi"
CLASSES = {"benign": "class=benign", "malignant": "class=malignant"}
EACH = 6

pytestmark = [
    pytest.mark.skipif(not BUSI.is_dir(), reason="real ultrasound data is not here (APP_CDM_DATA)"),
    pytest.mark.timeout(900),
]


def chosen_rows() -> list[dict[str, str]]:
    """A few train images of each kind, and one whose labels contradict each other, which is not copied."""
    with (BUSI / "images.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    found = []
    for kind in ("benign", "malignant", "normal"):
        groups = {row["group_id"]: row for row in rows if row["class"] == kind and row["label_conflict"] == "0"}
        found += list(groups.values())[:EACH]
    return [*found, next(row for row in rows if row["label_conflict"] == "1")]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on a few pictures, with two classes and no model."""
    folder, work = tmp_path_factory.mktemp("pictures"), tmp_path_factory.mktemp("picture_server")
    for row in chosen_rows()[:-1]:
        shutil.copyfile(BUSI / "images" / f"{row['image_id']}.png", folder / f"{row['image_id']}.png")
    (work / "models").mkdir()
    server = Server(folder, work, ["--model-dir", str(work / "models"), "--classes", ",".join(CLASSES)])
    try:
        yield server.wait()
        requests.delete(f"{server.url}/train/", timeout=60)
    finally:
        server.stop()


def table(rows: list[dict[str, str]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def send(server: Server, rows: list[dict[str, str]], **query: str) -> requests.Response:
    params = {"user": "reader", "split": "train", "columns": json.dumps(CLASSES), **query}
    return requests.post(f"{server.url}/tags/import", params=params, files={"file": ("images.csv", table(rows))}, timeout=60)


def test_two_classes_of_pictures_are_tagged_trained_and_segmented(pictures: Server) -> None:
    rows = chosen_rows()
    refused = send(pictures, rows)
    assert refused.status_code == 404
    assert rows[-1]["image_id"] in refused.json()["detail"]
    reply = send(pictures, rows, exclude="label_conflict")
    assert reply.status_code == 200, reply.text
    assert reply.json()["images"] == 3 * EACH
    counts = requests.get(f"{pictures.url}/tags/{rows[0]['image_id']}", timeout=60).json()["tags"]
    assert counts == {"benign": True, "malignant": False}

    assert train(pictures, minutes=0.2).status_code == 200
    assert wait_for(pictures, "published", limit_s=600)["state"] == "published"
    (current,) = (pictures.log.parent / "models" / ".versions").glob("*/current")
    description = json.loads((current.parent / current.read_text() / "model_index.json").read_text())
    assert set(description["training"]["sign"]["share_of_slices_with_a_darker_target"]) == set(CLASSES)
    assert description["training"]["num_images"] < 3 * EACH, "some patients are held out"

    picture = rows[0]["image_id"]
    shape = np.asarray(Image.open(BUSI / "images" / f"{picture}.png").convert("L")).shape
    for number, name in enumerate(CLASSES, start=1):
        form = {"params": (None, json.dumps({"label_prompt": [number], "gate": "off", "mode": "parallel"}))}
        reply = requests.post(f"{pictures.url}/infer/cdm_saliency", params={"image": picture, "output": "image"}, files=form, timeout=120)
        assert reply.status_code == 200, reply.text
        mask = np.asarray(Image.open(io.BytesIO(reply.content)))
        assert mask.shape == shape
        assert set(np.unique(mask)) == {0, number}, f"{name}: only this class, and something of it"

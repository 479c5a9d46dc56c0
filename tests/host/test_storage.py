"""What a server keeps on its disk: whole, of the right image, and no longer than it is needed."""

from __future__ import annotations

import io
import json
import os
import resource
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from app_cdm.data.volume import read_volume, write_mask
from tests.host.answers import assert_refused
from tests.host.server_process import Server
from tests.host.studies import head, write_nifti

HOURS = 3600


@pytest.fixture(scope="module")
def server(bare_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that starts where another was killed while it made sessions, one long ago and one just now."""
    work, studies = tmp_path_factory.mktemp("storage_server"), tmp_path_factory.mktemp("storage_studies")
    for name, meta, age_s in (("none", None, 2 * HOURS), ("empty", "", 2 * HOURS), ("young", "", 0)):
        folder = work / "sessions" / name
        folder.mkdir(parents=True)
        (folder / "image.nii.gz").write_bytes(b"half an image")
        if meta is not None:
            (folder / "meta.info").write_text(meta)
        os.utime(folder, times=(time.time() - age_s,) * 2)
    write_nifti(studies / "case.nii.gz", head())
    made = Server(studies, work, ["--model-dir", str(bare_models), "--classes", "tumor"])
    try:
        yield made.wait()
    finally:
        code = made.stop()
    assert code == 0, "the server did not end cleanly on Ctrl-C"


def put_image(server: Server, folder: Path, seed: int) -> None:
    content = write_nifti(folder / f"head{seed}.nii.gz", head(seed)).read_bytes()
    requests.put(f"{server.url}/datastore/?image=T1", files={"file": ("a.nii.gz", content)}, timeout=30).raise_for_status()


def put_label(server: Server, image: str, path: Path) -> requests.Response:
    return requests.put(
        f"{server.url}/datastore/label", params={"image": image}, files={"label": (path.name, path.read_bytes())}, timeout=30
    )


def make_label(server: Server, folder: Path) -> Path:
    image = read_volume(server.studies / "case.nii.gz")
    write_mask(np.ones(image.array.shape, np.uint8), image, folder / "label.nrrd")
    return folder / "label.nrrd"


def get(server: Server, path: str) -> Any:
    response = requests.get(f"{server.url}{path}", timeout=30)
    response.raise_for_status()
    return response.json()


def test_half_written_sessions_are_cleaned_up_at_the_start(server: Server) -> None:
    assert {path.name for path in (server.log.parent / "sessions").iterdir()} == {"young"}
    upload = {"files": ("a.nii.gz", (server.studies / "case.nii.gz").read_bytes())}
    made = requests.put(f"{server.url}/session/", files=upload, timeout=30)
    assert get(server, f"/session/{made.json()['session_id']}")["name"] == made.json()["session_id"]


def test_another_image_under_an_id_inherits_neither_labels_nor_tags(server: Server, tmp_path: Path) -> None:
    put_image(server, tmp_path, 1)
    put_label(server, "T1", make_label(server, tmp_path)).raise_for_status()
    requests.put(f"{server.url}/tags/T1", json={"tags": {"tumor": [[2, 4]]}}, timeout=30).raise_for_status()
    put_image(server, tmp_path, 1)
    assert get(server, "/tags/T1")["tags"] == {"tumor": [[2, 4]]}, "the same image once more loses its tags"
    put_image(server, tmp_path, 2)
    assert get(server, "/tags/T1")["tags"] == {"tumor": None}
    assert get(server, "/datastore/?output=all")["objects"]["T1"]["labels"] == {}
    assert not list((server.studies / "labels").rglob("T1*"))
    requests.post(f"{server.url}/reload", timeout=30).raise_for_status()
    assert get(server, "/datastore/?output=all")["objects"]["T1"]["labels"] == {}


def test_a_download_of_the_dataset_leaves_nothing(server: Server, tmp_path: Path) -> None:
    put_label(server, "case", make_label(server, tmp_path)).raise_for_status()
    assert server.leftovers() == []
    before = set(server.temporary.rglob("*"))
    response = requests.get(f"{server.url}/datastore/dataset", timeout=30)
    assert response.status_code == 200 and int(response.headers["Content-Length"]) == len(response.content)
    assert response.headers["Content-Disposition"] == 'attachment; filename="dataset.zip"'
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        assert archive.testzip() is None
        assert set(archive.namelist()) >= {"image/case.nii.gz", "label/case.nrrd", "metadata.json"}
        assert archive.read("image/case.nii.gz") == (server.studies / "case.nii.gz").read_bytes()
        assert json.loads(archive.read("metadata.json"))["objects"]["case"]["labels"].keys() == {"final"}
    assert set(server.temporary.rglob("*")) == before


def test_a_full_disk_is_said_and_keeps_the_label_before(server: Server, tmp_path: Path) -> None:
    """The kernel refuses to let files grow beyond what the log needs, which ends like a full disk."""
    put_label(server, "case", make_label(server, tmp_path)).raise_for_status()
    stored = server.studies / "labels" / "final" / "case.nrrd"
    before = stored.read_bytes()
    image = read_volume(server.studies / "case.nii.gz")
    write_mask(np.random.default_rng(0).integers(0, 255, image.array.shape, np.uint8), image, tmp_path / "large.nrrd")
    limit = server.log.stat().st_size + 2000
    assert limit < (tmp_path / "large.nrrd").stat().st_size
    unlimited = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (limit, unlimited[1]))
    try:
        for path in ("datastore/label?image=case", "datastore/image?image=case"):
            field = "label" if "label" in path else "file"
            files = {field: ("large.nrrd", (tmp_path / "large.nrrd").read_bytes())}
            assert_refused(requests.put(f"{server.url}/{path}", files=files, timeout=30), 507, "full")
        for first in range(100):  # until the log of the tag store has grown to the limit
            tagged = requests.put(f"{server.url}/tags/case", json={"tags": {"tumor": [[first % 5, 5]]}}, timeout=30)
            if not tagged.ok:
                break
        assert_refused(tagged, 507, "full")
    finally:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, unlimited)
    assert stored.read_bytes() == before
    assert {path.name for path in stored.parent.glob("*case*")} == {"case.nrrd"} and server.leftovers() == []

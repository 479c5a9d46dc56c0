"""A DICOM series in a folder, without a PACS: listed, downloaded, segmented, labelled; its files left alone."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests

from app_cdm.data.volume import read_volume
from tests.host.answers import METHODS, MODEL, ask_mask, assert_refused, nifti
from tests.host.server_process import Server
from tests.host.studies import write_dicom_series

# ITK's binary modules warn while they load, and die if the warning is made an error.
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")


def test_series_is_an_image_of_the_datastore(url: str, server: Server, series_uid: str) -> None:
    assert series_uid in requests.get(f"{url}/datastore/?output=all", timeout=10).json()["objects"]
    downloaded = requests.get(f"{url}/datastore/image", params={"image": series_uid}, timeout=30)
    assert f"{series_uid}.nii.gz" in downloaded.headers["content-disposition"]
    image = nifti(downloaded.content)
    source = read_volume(server.studies / "patient" / "flair")
    np.testing.assert_allclose(image.affine, source.affine, atol=1e-4)
    assert np.array_equal(np.asarray(image.dataobj), source.array)
    info = requests.get(f"{url}/datastore/image/info", params={"image": series_uid}, timeout=10).json()
    assert (info["name"], info["Modality"], info["SeriesDescription"]) == (f"{series_uid}.nii.gz", "MR", "made FLAIR")


@pytest.mark.parametrize("method", METHODS)
def test_series_is_segmented_on_its_own_grid(url: str, server: Server, series_uid: str, method: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in (server.studies / "patient").rglob("*")}
    response = requests.post(f"{url}/infer/{method}", params={"image": series_uid, "output": "image"}, timeout=60)
    assert response.status_code == 200, response.text
    mask, source = nifti(response.content), read_volume(server.studies / "patient" / "flair")
    assert mask.shape == source.array.shape
    np.testing.assert_allclose(mask.affine, source.affine, atol=1e-4)
    assert {path: path.stat().st_mtime_ns for path in (server.studies / "patient").rglob("*")} == before


def test_label_and_saliency_of_a_series_are_stored(url: str, server: Server, series_uid: str, tmp_path: Path) -> None:
    mask, params = ask_mask(url, series_uid, {"store_saliency": True, "label_prompt": [2]})
    assert params["saliency"][0]["tag"] == "saliency_tumor"
    assert requests.get(f"{url}{params['saliency'][0]['url']}", timeout=10).status_code == 200
    label = tmp_path / "label.nii.gz"
    nib.save(nib.Nifti1Image(mask, np.eye(4)), label)
    files = {"label": ("label.nii.gz", label.read_bytes())}
    saved = requests.put(f"{url}/datastore/label", params={"image": series_uid}, files=files, timeout=10)
    assert saved.json()["label"] == series_uid
    assert (server.studies / "labels" / "final" / f"{series_uid}.nii.gz").is_file()
    removed = requests.delete(f"{url}/datastore/label", params={"id": series_uid, "tag": "final"}, timeout=10)
    assert removed.status_code == 200
    assert series_uid in requests.get(f"{url}/datastore/?output=all", timeout=10).json()["objects"]


def test_series_cannot_be_removed_or_overwritten(url: str, server: Server, series_uid: str) -> None:
    assert_refused(requests.delete(f"{url}/datastore/image", params={"id": series_uid}, timeout=10), 400, "DICOM")
    image = requests.get(f"{url}/datastore/image?image=case0", timeout=10).content
    upload = requests.put(f"{url}/datastore/image", params={"image": series_uid}, files={"file": ("a.nii.gz", image)}, timeout=10)
    assert_refused(upload, 400, "DICOM")
    assert len(list((server.studies / "patient" / "flair").iterdir())) == 6


@pytest.mark.parametrize("count", [1, 6])
def test_uploaded_dicom_files(url: str, server: Server, count: int) -> None:
    """One file by the form, a whole series by a session."""
    files = sorted((server.studies / "patient" / "flair").iterdir())[:count]
    if count == 1:
        upload = {"file": ("slice.dcm", io.BytesIO(files[0].read_bytes()))}
        response = requests.post(f"{url}/infer/{MODEL}?output=image", files=upload, timeout=60)
    else:
        uploads = [("files", (f"{path.name}.dcm", path.read_bytes())) for path in files]
        session = requests.put(f"{url}/session/", files=uploads, timeout=10).json()["session_id"]
        response = requests.post(f"{url}/infer/{MODEL}?output=image&session_id={session}", timeout=60)
    assert response.status_code == 200, response.text
    assert nifti(response.content).shape == (40, 48, count)


def test_series_added_later_appears_after_a_reload(url: str, server: Server) -> None:
    folder = server.studies / "later"
    uid = write_dicom_series(folder, seed=9)
    assert_refused(requests.get(f"{url}/datastore/image", params={"image": uid}, timeout=10), 404, uid)
    assert requests.post(f"{url}/reload", timeout=30).status_code == 200
    assert requests.get(f"{url}/datastore/image", params={"image": uid}, timeout=30).status_code == 200
    shutil.rmtree(folder)
    assert requests.post(f"{url}/reload", timeout=30).status_code == 200
    assert uid not in requests.get(f"{url}/datastore/?output=all", timeout=10).json()["objects"]

"""A folder of studies as they come from a scanner: good series are images, each bad one is left out with its reason and hides none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from app_cdm.data.volume import read_volume
from tests.data.dicom_files import NORMAL, ORIGIN, STEP_MM, expected_affine, plane, write_frames, write_series, write_slice
from tests.host.answers import ask_mask, assert_refused, nifti
from tests.host.server_process import Server

# ITK's binary modules warn while they load, and die if the warning is made an error.
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")

GOOD, FRAMES, ECHOES, SECOND = "1.2.1", "1.2.2", "1.2.3", "1.2.4"
LOCALIZER, SCOUT, GAP, DAMAGED, VIDEO = "1.3.1", "1.3.2", "1.3.3", "1.3.4", "1.3.5"
SHAPE = (12, 16)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The studies, and what each good series holds."""
    folder = tmp_path_factory.mktemp("clinic")
    write_series(folder / "study" / "good", 6, series=GOOD, shape=SHAPE, PatientID="Doe^1")
    for path in sorted((folder / "study" / "good").iterdir())[:2]:  # exported twice
        (folder / "study" / f"copy_{path.name}").write_bytes(path.read_bytes())
    write_series(folder / "study" / "second", 5, series=SECOND, shape=SHAPE, PatientID="Doe^1", SeriesDescription="T2")
    for index, direction in enumerate(([1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 0, -1])):
        write_slice(folder / "study" / f"loc{index}", np.zeros((7, 5)), ORIGIN, LOCALIZER, ImageOrientationPatient=direction)
    write_slice(folder / "study" / "scout", np.zeros((7, 5)), ORIGIN, SCOUT, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(folder / "gap", 9, series=GAP, skip=(4,))
    write_series(folder / "damaged", 5, series=DAMAGED)
    broken = next((folder / "damaged").iterdir())
    broken.write_bytes(broken.read_bytes()[:-30])
    frames = np.random.default_rng(1).integers(0, 3000, (6, *SHAPE[::-1]))
    write_frames(folder / "frames.dcm", frames, [plane(index) for index in range(6)], series=FRAMES, PatientID="Roe^2")
    video = write_frames(folder / "video.dcm", frames, [{}] * 6, series=VIDEO)
    del video.PerFrameFunctionalGroupsSequence
    video.save_as(folder / "video.dcm")
    (folder / "echoes").mkdir()
    echoes = np.random.default_rng(2).integers(0, 3000, (2, 4, *SHAPE[::-1]))
    for number, echo in enumerate((15.0, 90.0)):
        for index in range(4):
            position = ORIGIN + index * STEP_MM * NORMAL
            changes: dict[str, Any] = {"EchoTime": echo, "PatientID": "Poe^3"}
            write_slice(folder / "echoes" / f"{index}_{number}", echoes[number, index], position, ECHOES, **changes)
    return {
        "folder": folder,
        GOOD: read_volume(folder / "study" / "good").array,
        SECOND: read_volume(folder / "study" / "second").array,
        FRAMES: frames.T,
        f"{ECHOES}_EchoTime_15": echoes[0].T,
        f"{ECHOES}_EchoTime_90": echoes[1].T,
    }


@pytest.fixture(scope="module")
def clinic(volumes: dict[str, Any], model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(volumes["folder"], tmp_path_factory.mktemp("clinic_server"), ["--model-dir", str(model_dir)])
    try:
        yield server.wait()
    finally:
        code = server.stop()
    assert code == 0


def test_good_series_are_listed_and_bad_ones_say_why(clinic: Server, volumes: dict[str, Any]) -> None:
    listed = set(requests.get(f"{clinic.url}/datastore/?output=all", timeout=30).json()["objects"])
    assert listed == {*volumes, DAMAGED} - {"folder"}, "pixels are looked at on first use only"
    store = requests.get(f"{clinic.url}/info/", timeout=30).json()["datastore"]
    assert (store["total"], store["num_left_out"]) == (len(listed), 4)
    for uid, word in {LOCALIZER: "another direction", SCOUT: "localizer", GAP: "a slice is missing", VIDEO: "several frames"}.items():
        assert word in store["left_out"][uid]
        assert f"DICOM series {uid} is left out" in clinic.log.read_text()
        assert_refused(requests.get(f"{clinic.url}/datastore/image", params={"image": uid}, timeout=30), 422, word)
        assert_refused(requests.post(f"{clinic.url}/infer/student", params={"image": uid}, timeout=30), 422, word)
    assert "Doe" not in clinic.log.read_text(), "who the patients are is not logged"


@pytest.mark.parametrize("image", [GOOD, SECOND, FRAMES, f"{ECHOES}_EchoTime_15", f"{ECHOES}_EchoTime_90"])
def test_image_mask_and_tags_are_on_the_grid_of_the_series(clinic: Server, volumes: dict[str, Any], image: str) -> None:
    downloaded = nifti(requests.get(f"{clinic.url}/datastore/image", params={"image": image}, timeout=60).content)
    np.testing.assert_array_equal(np.asarray(downloaded.dataobj), volumes[image])
    np.testing.assert_allclose(downloaded.affine, expected_affine(), atol=1e-3)
    mask, _ = ask_mask(clinic.url, image, model="student")
    assert mask.shape == volumes[image].shape
    last = mask.shape[2] - 1
    beyond = requests.put(f"{clinic.url}/tags/{image}", json={"tags": {"tumor": [[0, last + 1]]}, "user": "ann"}, timeout=30)
    assert_refused(beyond, 400, f"{last + 1} slices")
    requests.put(f"{clinic.url}/tags/{image}", json={"tags": {"tumor": [[0, last]]}, "user": "ann"}, timeout=30).raise_for_status()


def test_damaged_series_is_refused_and_the_others_go_on(clinic: Server) -> None:
    assert_refused(requests.get(f"{clinic.url}/datastore/image", params={"image": DAMAGED}, timeout=60), 422, "export")
    assert requests.get(f"{clinic.url}/datastore/image", params={"image": GOOD}, timeout=60).status_code == 200


def test_patients_are_counted_by_patient_id(clinic: Server) -> None:
    """Five images are tagged by now, of three patients: two series are of one, two echoes of another."""
    reply = requests.post(f"{clinic.url}/train/weak_label", json={}, timeout=30)
    assert_refused(reply, 409, "tag images of 1 more patient(s)")

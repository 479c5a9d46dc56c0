"""The request sequence of 3D Slicer's own client against the real server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import pytest
import requests

from app_cdm.data.volume import Volume, read_volume, write_mask
from tests.host.answers import METHODS, MODEL, nifti
from tests.host.server_process import Server
from tests.host.studies import AFFINE, SHAPE, head, write_nifti

# Slicer's client leaves closing its sockets and files to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


def as_slicer_sends(table: dict[str, Any]) -> dict[str, Any]:
    """The option table as Slicer's `getParamsFromConfig` sends it back, plus what its `infer` adds."""
    sent = {key: value[0] if isinstance(value, list) else value for key, value in table.items()}
    return sent | {"result_extension": ".nrrd", "result_dtype": "uint8"}


def test_info_names_the_model_its_labels_and_options(slicer: Any) -> None:
    info = slicer.info()
    assert "config" not in info  # Slicer would take the server for too old
    model = info["models"][MODEL]
    assert (model["type"], model["dimension"]) == ("segmentation", 3)
    assert model["labels"] == {"edema": 1, "tumor": 2}
    assert info["labels"] == ["edema", "tumor"]
    for name, value in model["config"].items():
        assert isinstance(value, bool | int | float | str) or (isinstance(value, list) and all(isinstance(v, str) for v in value)), name
    assert {"mode", "noise_levels", "threshold_rule", "gate", "seed", "device", "store_saliency"} <= set(model["config"])
    assert slicer.auth_enabled() is False


def test_auto_segmentation_round(slicer: Any, server: Server, tmp_path: Path) -> None:
    """Info, next sample, image download, infer, save label: what three clicks in Slicer send."""
    table = slicer.info()["models"][MODEL]["config"]
    sample = slicer.next_sample("next", {})
    assert sample["id"] and sample["name"].endswith((".nii.gz", ".png"))
    image_id = "case1"
    downloaded = requests.get(f"{server.url}/datastore/image", params={"image": image_id}, timeout=10)
    image = nifti(downloaded.content)
    assert np.array_equal(np.asarray(image.dataobj), head(1))

    mask_file, params = slicer.infer(MODEL, image_id, as_slicer_sends(table))
    assert mask_file.endswith(".nrrd")
    mask, _ = nrrd.read(mask_file)
    assert mask.dtype == np.uint8 and mask.shape == SHAPE and set(np.unique(mask)) <= {0, 1, 2} and mask.any()
    np.testing.assert_allclose(read_volume(Path(mask_file)).affine, AFFINE, atol=1e-3)
    assert params["label_names"] == {"edema": 1, "tumor": 2}
    assert params["ignored_params"] == []
    for scores in params["slice_scores"].values():
        assert len(scores) == SHAPE[params["slicing_axis"]]
    assert set(params["class_scores"]) == {"edema", "tumor"}
    assert params["network_evaluations"] > 0 and params["model_version"] and params["timings"]["request"] > 0

    label = tmp_path / "label.nii.gz"
    write_mask(mask, Volume(mask.astype(np.float32), AFFINE), label)
    saved = slicer.save_label(image_id, str(label), params={"label_info": [{"name": "edema", "idx": 1}]})
    assert saved["label"] == image_id
    assert slicer.datastore()["objects"][image_id]["labels"]["final"]["info"]["client_id"] == "test"
    assert (server.studies / "labels" / "final" / "case1.nii.gz").is_file()
    assert slicer.info()["datastore"]["completed"] >= 1
    back = slicer.download_label(image_id, "final")
    assert np.array_equal(read_volume(Path(back)).array, mask)


@pytest.mark.parametrize("method", METHODS)
def test_option_table_sent_back_runs(slicer: Any, method: str) -> None:
    """Slicer sends the whole table of the model it shows: nothing in it may be refused or mean nothing."""
    mask_file, params = slicer.infer(method, "case2", as_slicer_sends(slicer.info()["models"][method]["config"]))
    assert (params["method"], params["ignored_params"]) == (method, [])
    assert read_volume(Path(mask_file)).array.shape == SHAPE
    np.testing.assert_allclose(read_volume(Path(mask_file)).affine, AFFINE, atol=1e-3)


def test_labelled_image_is_not_offered_again_and_others_come_in_turn(slicer: Any, server: Server) -> None:
    final = set(server.studies.glob("labels/final/*"))
    offered = []
    for _ in range(3):
        offered.append(slicer.next_sample("random", {})["id"])  # OHIF always asks for this strategy
    assert all(f"{image}.nii.gz" not in {path.name for path in final} for image in offered)


def test_volume_loaded_from_disk_is_uploaded_then_segmented(slicer: Any, tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "sub-01.ses.2_flair.nii.gz", head(11))
    assert slicer.upload_image(str(path), "from_slicer")["image"] == "from_slicer"
    mask_file, _ = slicer.infer(MODEL, "from_slicer", {"result_extension": ".nrrd"})
    assert read_volume(Path(mask_file)).array.shape == SHAPE


def test_session_is_segmented_and_removed(slicer: Any, tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "session_image.nii.gz", head(12))
    session_id = slicer.create_session(str(path))["session_id"]
    mask_file, _ = slicer.infer(MODEL, "", {}, session_id=session_id)
    assert read_volume(Path(mask_file)).array.shape == SHAPE
    assert slicer.get_session(session_id)["image"]
    slicer.remove_session(session_id)
    assert not slicer.get_session(session_id), "the module uploads again then"

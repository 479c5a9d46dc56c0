"""What differs between the infer tasks: order, options, uncertainty, cost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import requests

from tests.host.answers import METHODS, ask_mask, assert_refused, nifti
from tests.host.server_process import Server
from tests.host.studies import AFFINE, SHAPE, head, write_nifti

WITH_UNCERTAINTY = ("student", "cldf")
SALIENCY_ONLY = {"mode": "magic", "noise_levels": "high", "seed": 1.5, "guidance_scale": "", "num_draws": 3}


def test_student_is_the_first_that_viewers_see(url: str) -> None:
    """Slicer and OHIF both preselect the first `segmentation` model of `/info/`, in the order of the JSON text."""
    models = requests.get(f"{url}/info/", timeout=10).json()["models"]
    assert tuple(models) == METHODS
    assert {model["type"] for model in models.values()} == {"segmentation"}
    assert len({model["description"] for model in models.values()}) == len(METHODS)
    assert all("not a medical device" in model["description"] and model["labels"] == {"edema": 1, "tumor": 2} for model in models.values())
    assert [name for name, model in models.items() if "mode" in model["config"]] == ["cdm_saliency"]


@pytest.mark.parametrize("method", METHODS)
def test_reply_says_what_was_done(url: str, method: str) -> None:
    mask, params = ask_mask(url, "case0", model=method)
    assert mask.shape == SHAPE and mask.any() and params["method"] == params["settings"]["method"] == method
    assert set(params["class_scores"]) == set(params["slice_scores"]) == {"edema", "tumor"}
    assert (params["network_evaluations"] == 0) == (method == "student"), "the student does without the diffusion model"
    assert ("slice_uncertainty" in params) == (method in WITH_UNCERTAINTY)
    for values in params.get("slice_uncertainty", {}).values():
        assert len(values) == SHAPE[params["slicing_axis"]] and 0 < max(values) <= 1 and min(values) >= 0


@pytest.mark.parametrize("method", WITH_UNCERTAINTY)
def test_options_of_cdm_saliency_are_named_back_and_change_nothing(url: str, method: str) -> None:
    mask, plain = ask_mask(url, "case1", {}, model=method)
    same, params = ask_mask(url, "case1", SALIENCY_ONLY, model=method)
    assert params["ignored_params"] == sorted(SALIENCY_ONLY) and params["settings"] == plain["settings"]
    assert np.array_equal(mask, same)
    assert ask_mask(url, "case1", {"store_uncertainty": True, "noise_levels": "0.5"})[1]["ignored_params"] == ["store_uncertainty"]


@pytest.mark.parametrize("method", WITH_UNCERTAINTY)
def test_options_arrive_as_strings_and_act(url: str, method: str) -> None:
    options = {"fixed_threshold": "0.52", "gate": "off", "components": "largest", "device": "cpu", "slicing_axis": "2"}
    mask, params = ask_mask(url, "case0", options, model=method)
    rules = params["settings"]["mask"]
    assert (rules["fixed_threshold"], rules["gate"], rules["components"], params["device"]) == (0.52, "off", "largest", "cpu")
    assert 0 < np.count_nonzero(mask) < np.count_nonzero(ask_mask(url, "case0", model=method)[0])
    empty, params = ask_mask(url, "case0", {"gate_threshold": 1}, model=method)
    assert not empty.any() and not np.any(list(params["slice_uncertainty"].values())), "what the gate leaves out is certain"


@pytest.mark.parametrize("method", WITH_UNCERTAINTY)
@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"fixed_threshold": 2}, ("fixed_threshold", "[0.0, 1.0]")),
        ({"gate": "maybe"}, ("gate", "auto")),
        ({"components": "some"}, ("components", "largest")),
        ({"batch_images": 0}, ("batch_images", "[2, 4096]")),
        ({"store_uncertainty": "perhaps"}, ("store_uncertainty", "true or false")),
        ({"device": "tpu"}, ("device", "cpu")),
        ({"label_prompt": [3]}, ("label_prompt", "'tumor': 2")),
    ],
)
def test_bad_option_is_refused_with_what_is_allowed(url: str, method: str, params: dict[str, object], words: tuple[str, ...]) -> None:
    response = requests.post(f"{url}/infer/{method}?image=case0", data={"params": json.dumps(params)}, timeout=60)
    assert_refused(response, 400, *words)
    if "device" not in params:
        assert_refused(requests.post(f"{url}/batch/infer/{method}", json=params, timeout=10), 400, *words)


@pytest.mark.parametrize("method", WITH_UNCERTAINTY)
def test_maps_are_stored_under_tags_of_their_own(url: str, server: Server, method: str) -> None:
    _, params = ask_mask(url, "case1", {"store_saliency": True, "store_uncertainty": "true", "label_prompt": [2]}, model=method)
    assert params["ignored_params"] == []
    maps = {}
    for kind in ("saliency", "uncertainty"):
        (stored,) = params[kind]
        assert (stored["class"], stored["tag"]) == ("tumor", f"{kind}_tumor")
        image = nifti(requests.get(f"{url}{stored['url']}", timeout=10).content)
        assert image.shape == SHAPE and image.get_data_dtype() == np.float32
        np.testing.assert_allclose(image.affine, AFFINE, atol=1e-4)
        maps[kind] = image.get_fdata()
        info = requests.get(f"{url}/datastore/label/info", params={"label": "case1", "tag": stored["tag"]}, timeout=10).json()
        assert (info["method"], info["model_version"]) == (method, params["model_version"])
    assert maps["saliency"].max() > 0.5
    np.testing.assert_allclose(maps["uncertainty"], 4 * maps["saliency"] * (1 - maps["saliency"]), atol=1e-5)
    assert (server.studies / "labels" / "uncertainty_tumor" / "case1.nii.gz").is_file()


def test_uncertainty_of_an_upload_has_no_place(url: str, server: Server, tmp_path: Path) -> None:
    with write_nifti(tmp_path / "volume.nii.gz", head(5)).open("rb") as file:
        response = requests.post(f"{url}/infer/cldf", data={"params": '{"store_uncertainty": true}'}, files={"file": file}, timeout=60)
    assert_refused(response, 400, "store_uncertainty", "/datastore/image")
    assert server.leftovers() == []

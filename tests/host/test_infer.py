"""The infer route: geometry, formats, options, prompts and stored maps."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import requests
from PIL import Image

from app_cdm.config import SaliencyMode
from tests.host.answers import METHODS, MODEL, ask_mask, assert_refused, nifti
from tests.host.server_process import Server
from tests.host.studies import AFFINE, SHAPE, head, write_nifti, write_picture


@pytest.mark.parametrize(("method", "extension"), [*((method, ".nii.gz") for method in METHODS), (MODEL, ".nii")])
def test_upload_gives_a_mask_on_the_grid_of_the_image(url: str, server: Server, tmp_path: Path, method: str, extension: str) -> None:
    path = write_nifti(tmp_path / "volume.nii.gz", head(5))
    with path.open("rb") as file:
        params = {"params": json.dumps({"result_extension": extension})}
        response = requests.post(f"{url}/infer/{method}?output=image", data=params, files={"file": file}, timeout=60)
    assert response.status_code == 200, response.text
    assert response.headers["content-disposition"].strip('"').endswith(extension)
    mask = nifti(response.content, extension)
    assert mask.get_data_dtype() == np.uint8 and mask.shape == SHAPE and np.asarray(mask.dataobj).any()
    np.testing.assert_allclose(mask.affine, AFFINE, atol=1e-4)
    assert server.leftovers() == []


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("source", ["datastore", "upload"])
def test_picture_in_picture_out(url: str, tmp_path: Path, source: str, method: str) -> None:
    if source == "datastore":
        response = requests.post(f"{url}/infer/{method}?output=image&image=picture", timeout=60)
    else:
        with write_picture(tmp_path / "plane.png").open("rb") as file:
            data = {"params": json.dumps({"result_extension": ".png"})}
            response = requests.post(f"{url}/infer/{method}?output=image", data=data, files={"file": file}, timeout=60)
    assert response.status_code == 200, response.text
    mask = np.asarray(Image.open(io.BytesIO(response.content)))
    assert mask.shape == SHAPE[:2] and mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1, 2}


def test_png_of_a_volume_is_refused(url: str) -> None:
    response = requests.post(f"{url}/infer/{MODEL}?image=case0", data={"params": '{"result_extension": ".png"}'}, timeout=60)
    assert_refused(response, 400, ".png", f"{SHAPE[2]} slices")


@pytest.mark.parametrize("method", METHODS)
def test_label_prompt_restricts_the_classes(url: str, method: str) -> None:
    _, everything = ask_mask(url, "case0", {"label_prompt": []}, model=method)
    assert set(everything["class_scores"]) == {"edema", "tumor"}
    for number, name in ((1, "edema"), (2, "tumor")):
        mask, params = ask_mask(url, "case0", {"label_prompt": [number]}, model=method)
        assert set(params["class_scores"]) == {name}
        assert set(np.unique(mask)) == {0, number}
        assert params["label_names"] == {"edema": 1, "tumor": 2}
    response = requests.post(f"{url}/infer/{method}?image=case0", data={"params": '{"label_prompt": [3]}'}, timeout=60)
    assert_refused(response, 400, "label_prompt", "'tumor': 2")


@pytest.mark.parametrize("mode", get_args(SaliencyMode))
def test_every_mode_runs(url: str, mode: str) -> None:
    options = {"mode": mode, "num_denoising_steps": 2, "cg_diff_num_steps": 2, "noise_levels": "0.5", "flip": False}
    mask, params = ask_mask(url, "case2", options)
    assert params["settings"]["saliency"]["mode"] == mode and params["ignored_params"] == []
    assert mask.shape == SHAPE
    assert (params["network_evaluations"] > 0) == (mode not in ("gradient", "grad_cam", "layer_cam", "intensity"))


def test_options_arrive_as_strings_too(url: str) -> None:
    typed = {"noise_levels": [0.4, 0.6], "seed": 3, "gate": "off", "fixed_threshold": 0.25, "threshold_rule": "fixed", "device": "cpu"}
    as_text = {**typed, "noise_levels": "0.4, 0.6", "seed": "3", "fixed_threshold": "0.25"}
    mask, params = ask_mask(url, "case0", as_text)
    saliency, rules = params["settings"]["saliency"], params["settings"]["mask"]
    assert saliency["noise_levels"] == [0.4, 0.6] and saliency["seed"] == 3 and params["device"] == "cpu"
    assert (rules["gate"], rules["threshold_rule"], rules["fixed_threshold"]) == ("off", "fixed", 0.25)
    same, _ = ask_mask(url, "case0", typed)
    assert np.array_equal(mask, same)
    assert ask_mask(url, "case0", {"treshold_rule": "fixed"})[1]["ignored_params"] == ["treshold_rule"]


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"mode": "magic"}, ("mode", "parallel")),
        ({"noise_levels": "0.5; high"}, ("noise_levels", "number")),
        ({"noise_levels": "7"}, ("noise_levels", "0.995")),
        ({"seed": "1.5"}, ("seed", "whole number")),
        ({"threshold_rule": 3}, ("threshold_rule", "otsu")),
        ({"gate": "maybe"}, ("gate", "auto")),
        ({"gate_threshold": "NaN"}, ("gate_threshold", "number")),
        ({"device": "tpu"}, ("device", "cpu")),
        ({"store_saliency": "perhaps"}, ("store_saliency", "true or false")),
        ({"result_extension": ".exe"}, ("result_extension", ".nrrd")),
        ({"label_prompt": "tumor"}, ("label_prompt",)),
    ],
)
def test_bad_option_is_refused_with_what_is_allowed(url: str, params: dict[str, object], words: tuple[str, ...]) -> None:
    response = requests.post(f"{url}/infer/{MODEL}?image=case0", data={"params": json.dumps(params)}, timeout=60)
    assert_refused(response, 400, *words)


def test_saliency_is_stored_under_a_tag_of_its_own(url: str, server: Server) -> None:
    _, params = ask_mask(url, "case2", {"store_saliency": True})
    assert [item["tag"] for item in params["saliency"]] == ["saliency_edema", "saliency_tumor"]
    for item in params["saliency"]:
        response = requests.get(f"{url}{item['url']}", timeout=10)
        saliency = nifti(response.content)
        assert saliency.shape == SHAPE and saliency.get_data_dtype() == np.float32
        np.testing.assert_allclose(saliency.affine, AFFINE, atol=1e-4)
        assert np.isfinite(saliency.get_fdata()).all() and saliency.get_fdata().max() > 0
        info = requests.get(f"{url}/datastore/label/info", params={"label": "case2", "tag": item["tag"]}, timeout=10).json()
        assert (info["model_version"], info["method"]) == (params["model_version"], MODEL)
    assert (server.studies / "labels" / "saliency_tumor" / "case2.nii.gz").is_file()


def test_saliency_of_an_upload_has_no_place(url: str, tmp_path: Path) -> None:
    with write_nifti(tmp_path / "volume.nii.gz", head(5)).open("rb") as file:
        response = requests.post(f"{url}/infer/{MODEL}", data={"params": '{"store_saliency": true}'}, files={"file": file}, timeout=60)
    assert_refused(response, 400, "store_saliency", "/datastore/image")


def test_json_only(url: str) -> None:
    answer = requests.post(f"{url}/infer/{MODEL}?image=case0&output=json", timeout=60).json()
    assert answer["label_names"] == {"edema": 1, "tumor": 2}

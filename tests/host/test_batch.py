"""Batch inference on a machine without a GPU, with the body that clients send by default."""

from __future__ import annotations

import time

import nibabel as nib
import numpy as np
import pytest
import requests

from tests.host.answers import METHODS, MODEL
from tests.host.server_process import Server
from tests.host.studies import head, write_nifti


def wait_for_batch(url: str, timeout_s: float = 60) -> dict[str, object]:
    """Polls the status as Slicer does."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        status: dict[str, object] = requests.get(f"{url}/batch/infer", timeout=10).json()
        if status["status"] != "RUNNING":
            return status
        time.sleep(0.2)
    raise AssertionError(f"batch still running after {timeout_s} s: {status}")


def test_default_body_works_and_bad_images_do_not_end_it(url: str, server: Server) -> None:
    bad = write_nifti(server.studies / "nan.nii.gz", np.full((8, 8, 4), np.nan, dtype=np.float32))
    for _ in range(50):  # the host follows the folder
        if "nan" in requests.get(f"{url}/datastore/?output=all", timeout=10).json()["objects"]:
            break
        time.sleep(0.1)
    try:
        started = requests.post(f"{url}/batch/infer/{MODEL}", timeout=10)
        assert started.status_code == 200, started.text
        status = wait_for_batch(url)
    finally:
        bad.unlink()
    assert status["status"] == "DONE"
    results = status["result"]
    assert isinstance(results, dict) and {"case0", "case1", "case2", "picture", "nan"} <= set(results)
    assert set(results.pop("nan")) == {"error"}
    assert all("error" not in answer for answer in results.values()), results
    stored = nib.load(server.studies / "labels" / "original" / "case0.nii.gz")
    assert stored.shape == head(0).shape and stored.get_data_dtype() == np.uint8
    tags = requests.get(f"{url}/datastore/", timeout=10).json()["label_tags"]
    assert tags["original"] >= 4 and not any("." in tag for tag in tags)


def test_a_format_that_does_not_suit_every_image_does_not_end_it(url: str) -> None:
    body = {"result_extension": ".png", "label_tag": "pictures", "mode": "intensity"}
    results = requests.post(f"{url}/batch/infer/{MODEL}?run_sync=true", json=body, timeout=60).json()
    assert results["picture"]["tag"] == "pictures"
    assert "slices" in results["case0"]["error"] and "slices" in results["case2"]["error"]


@pytest.mark.parametrize("method", METHODS)
def test_synchronous_batch_with_a_limit(url: str, method: str) -> None:
    body = {"max_batch_size": 1, "label_tag": "limited", "noise_levels": "0.5"}
    answer = requests.post(f"{url}/batch/infer/{method}?run_sync=true", json=body, timeout=60)
    assert answer.status_code == 200
    (reply,) = answer.json().values()
    assert (reply["tag"], reply["params"]["method"]) == ("limited", method)


def test_stop_ends_a_batch_between_two_images(url: str) -> None:
    requests.post(f"{url}/batch/infer/{MODEL}", json={"num_draws": 16, "label_tag": "stopped"}, timeout=10)
    again = requests.post(f"{url}/batch/infer/{MODEL}", timeout=10)
    assert requests.delete(f"{url}/batch/infer", timeout=10).status_code == 200
    assert wait_for_batch(url)["status"] == "STOPPED"
    assert again.status_code == 429 and "running" in again.json()["detail"]

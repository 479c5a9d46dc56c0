"""What a server sent back, as arrays."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import requests
from requests_toolbelt.multipart.decoder import MultipartDecoder

METHODS = ("student", "cldf", "cdm_saliency")  # as viewers must find them
MODEL = "cdm_saliency"


def ask_mask(
    url: str, image: str, params: Mapping[str, Any] | None = None, timeout_s: float = 60, model: str = MODEL
) -> tuple[np.ndarray, dict[str, Any]]:
    """Asks for a mask of a datastore image; returns the voxels and the reply's JSON."""
    response = requests.post(f"{url}/infer/{model}", params={"image": image}, data={"params": json.dumps(params or {})}, timeout=timeout_s)
    assert response.status_code == 200, response.text
    parts = {part.headers[b"Content-Disposition"]: part.content for part in MultipartDecoder.from_response(response).parts}
    params_part = next(content for name, content in parts.items() if b'name="params"' in name)
    image_part = next(content for name, content in parts.items() if b'name="image"' in name)
    return voxels(image_part), json.loads(params_part)


def voxels(content: bytes, suffix: str = ".nii.gz") -> np.ndarray:
    """The voxels of a NIfTI file in memory."""
    return np.asarray(nifti(content, suffix).dataobj)


def nifti(content: bytes, suffix: str = ".nii.gz") -> nib.Nifti1Image:
    """A NIfTI file in memory, read completely."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"answer{suffix}"
        path.write_bytes(content)
        image = nib.load(path)
        return nib.Nifti1Image(np.asarray(image.dataobj), image.affine)


def assert_refused(response: requests.Response, status: int, *words: str) -> None:
    """Requires a 4xx with a JSON detail that names the problem."""
    assert response.status_code == status, f"{response.status_code}: {response.text[:500]}"
    detail = response.json()["detail"]
    assert isinstance(detail, str)
    for word in words:
        assert word in detail, detail

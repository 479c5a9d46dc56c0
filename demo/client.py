"""Talks to the label server as 3D Slicer's MONAI Label module does: multipart over HTTP."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import requests
from requests_toolbelt.multipart.decoder import MultipartDecoder

INFER_LIMIT_S = 1800.0


class ReplyError(RuntimeError):
    """The server answered with an error or with something else than a mask."""


@dataclass(frozen=True)
class Grid:
    """Values on a voxel grid.

    Attributes:
        values: (X, Y, Z).
        affine: voxel to RAS in mm.
    """

    values: npt.NDArray[Any]
    affine: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Answer:
    """What one auto-segment click brings.

    Attributes:
        mask: the mask that the viewer would show.
        saliency: the saliency map of the first class.
        params: the reply's JSON.
        wall_s: seconds from the click to the mask.
    """

    mask: Grid
    saliency: Grid
    params: dict[str, Any]
    wall_s: float


def get_info(url: str) -> dict[str, Any]:
    """What the server offers (`GET /info/`)."""
    info: dict[str, Any] = _checked(requests.get(f"{url}/info/", timeout=30)).json()
    return info


def offered_model(url: str) -> str:
    """The task that a viewer preselects: the first that the server offers.

    Raises:
        ReplyError: it offers none.
    """
    models = list(get_info(url).get("models", {}))
    if not models:
        raise ReplyError("the server offers no model: are there weights under model/?")
    return str(models[0])


def auto_segment(url: str, model: str, image_id: str, folder: Path) -> Answer:
    """Asks for a mask and the stored saliency map of an image of the datastore.

    Args:
        url: address of the server.
        model: the infer task.
        image_id: id of the image there.
        folder: where the received files are kept.

    Raises:
        ReplyError: the answer is an error or holds no mask.
    """
    start = time.perf_counter()
    params = {"result_extension": ".nii.gz", "store_saliency": True}
    reply = requests.post(
        f"{url}/infer/{model}", params={"image": image_id}, files={"params": (None, json.dumps(params))}, timeout=INFER_LIMIT_S
    )
    parts = multipart(_checked(reply))
    wall_s = time.perf_counter() - start
    if "image" not in parts or "params" not in parts:
        raise ReplyError(f"{image_id}: the reply holds {sorted(parts)} but must hold 'image' and 'params'")
    body = json.loads(parts["params"])
    stored = body.get("saliency") or []
    if not stored:
        raise ReplyError(f"{image_id}: the reply names no stored saliency map")
    saliency = _checked(requests.get(f"{url}/datastore/label", params={k: stored[0][k] for k in ("label", "tag")}, timeout=60))
    folder.mkdir(parents=True, exist_ok=True)
    return Answer(
        mask=_load(parts["image"], folder / f"{image_id}_mask.nii.gz"),
        saliency=_load(saliency.content, folder / f"{image_id}_saliency.nii.gz"),
        params=body,
        wall_s=wall_s,
    )


def _checked(reply: requests.Response) -> requests.Response:
    if not reply.ok:
        raise ReplyError(f"{reply.request.method} {reply.url}: {reply.status_code} {reply.text[:500]}")
    return reply


def multipart(reply: requests.Response) -> dict[str, bytes]:
    """Parts of a multipart/form-data body by field name; empty for any other body."""
    if not reply.headers.get("Content-Type", "").startswith("multipart/"):
        return {}
    parts = {}
    for part in MultipartDecoder.from_response(reply).parts:
        name = re.search(rb'name="([^"]+)"', part.headers[b"Content-Disposition"])
        if name:
            parts[name[1].decode()] = part.content
    return parts


def _load(content: bytes, path: Path) -> Grid:
    path.write_bytes(content)
    image = nib.Nifti1Image.from_filename(path)
    return Grid(np.asanyarray(image.dataobj), np.asarray(image.affine, dtype=np.float64))

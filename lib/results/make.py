"""A new result: the same inference as `/infer`, of which mask and maps are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import numpy as np
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask

from app_cdm.data.volume import Volume
from lib.infers.run import find_image, find_task
from lib.infers.segmentation import SegmentationTask, Segmented
from lib.plain import plain
from lib.results.images import digest_of, stamp_of
from lib.results.record import Source, new_id, now
from lib.results.store import ResultStore
from lib.server.errors import UnknownNameError, UnusableRequestError

# What would store something beside the result.
STORING_PARAMS = ("save_label", "store_saliency", "store_uncertainty")
MM3_PER_ML = 1000.0


def make_result(tasks: Mapping[str, InferTask], request: Mapping[str, Any], datastore: Datastore, store: ResultStore) -> dict[str, Any]:
    """Runs one inference and keeps what comes of it.

    Args:
        tasks: tasks by name.
        request: `model`, `image` of the datastore, and the task's parameters.
        datastore: where images are.
        store: where the result goes.

    Returns:
        What clients are told.

    Raises:
        UnknownNameError: there is no such model or image.
        UnusableRequestError: a parameter would store something.
        NoSpaceError: the disk is full.
    """
    task, image = find_task(tasks, request), str(request.get("image", ""))
    if not isinstance(task, SegmentationTask):
        raise UnknownNameError("model", request.get("model"), [name for name, item in tasks.items() if isinstance(item, SegmentationTask)])
    for name in STORING_PARAMS:
        if str(request.get(name, False)).lower() not in ("false", "0", "", "none", "no", "off"):
            raise UnusableRequestError(
                f"{name} means nothing here: a result keeps its mask and maps; store it with POST /results/<id>/accept"
            )
    path = find_image(image, datastore)
    stamp = stamp_of(datastore, image)
    done = task.segment({**request, "image": path, "image_id": image})
    result_id = new_id()
    reply = plain(describe(result_id, image, str(request["model"]), done))
    mask = Volume(done.result.mask, done.volume.affine, done.volume.kind, done.volume.path, done.volume.nifti_header)
    store.add(result_id, reply, Source(stamp, digest_of(done.volume)), mask, done.result.slice_maps, done.result.geometry)
    return store.get(result_id).shown


def describe(result_id: str, image: str, model: str, done: Segmented) -> dict[str, Any]:
    """The reply: what `/infer` says, and how much of each class there is."""
    all_labels = done.reply.pop("label_names")
    labels = {name: all_labels[name] for name in sorted(done.result.slice_maps)}
    counts = np.bincount(done.result.mask.ravel(), minlength=256)
    voxel_ml = abs(float(np.linalg.det(done.volume.affine[:3, :3]))) / MM3_PER_ML
    # A picture has no scale.
    has_scale = done.volume.kind != "image"
    return {
        "result": result_id,
        "image": image,
        "model": model,
        "created": now(),
        **done.reply,
        "labels": labels,
        "voxels": {name: int(counts[value]) for name, value in labels.items()},
        "volumes_ml": {name: float(counts[value]) * voxel_ml if has_scale else None for name, value in labels.items()},
        "maps": {name: f"/results/{result_id}/map/{quote(name, safe='')}" for name in labels},
    }

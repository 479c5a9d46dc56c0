"""One inference from a request: resolves the image, runs the task, saves the mask if asked to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.infer_v2 import InferTask

from lib.server.errors import LIST_IMAGES, UnknownNameError, UnusableRequestError


def run_inference(tasks: Mapping[str, InferTask], request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
    """Answers an inference request in the form that MONAI Label's routes expect.

    Differs from `MONAILabelApp.infer`, which takes whatever exists on the server's disk for a path: here an absolute
    path (made by the server for an upload or a session) is a file, and everything else is an id of the datastore.

    Args:
        tasks: tasks by name.
        request: `model`, `image` and the task's parameters; `save_label` and `label_tag` store the mask.
        datastore: where ids are looked up and masks are stored.

    Raises:
        UnknownNameError: there is no such model or image.
        UnusableRequestError: a mask of an uploaded image is to be saved.
    """
    task = find_task(tasks, request)
    image = str(request.get("image", ""))
    is_file = os.path.isabs(image)
    save_label = str(request.get("save_label", False)).lower() == "true"
    if save_label and is_file:
        raise UnusableRequestError(
            "save_label needs an image of the datastore: upload it with PUT /datastore/image, then name it with ?image="
        )
    path = image if is_file else find_image(image, datastore)
    file, params = task({**request, "image": path, "image_id": None if is_file else image})
    label: str = file
    tag = str(request.get("label_tag") or DefaultLabelTag.ORIGINAL.value)
    if save_label:
        try:
            info = {"model": request["model"], "params": params, "label_info": name_values(params["label_names"])}
            label = datastore.save_label(image, file, tag, info)
        except BaseException:
            Path(file).unlink(missing_ok=True)
            raise
    return {"label": label, "tag": tag, "file": file, "params": params}


def name_values(labels: Mapping[str, int]) -> list[dict[str, str]]:
    """Names of a mask's values in order, as viewers send them: without, they would be those of the classes there are, not of the model's.

    Args:
        labels: class name to mask value, from 1 without gaps.
    """
    return [{"name": name} for name in sorted(labels, key=labels.__getitem__)]


def find_task(tasks: Mapping[str, InferTask], request: Mapping[str, Any]) -> InferTask:
    """The task that a request names under `model`.

    Raises:
        UnknownNameError: there is no such model.
    """
    task = tasks.get(str(request.get("model")))
    if task is None:
        raise UnknownNameError("model", request.get("model"), tasks)
    return task


def find_image(image: str, datastore: Datastore) -> str:
    """The file of an image of the datastore.

    Raises:
        UnknownNameError: there is no such image.
    """
    path = datastore.get_image_uri(image)
    if not path:
        raise UnknownNameError("image", image, hint=LIST_IMAGES)
    return str(path)

"""The infer tasks `student`, `cldf` and `cdm_saliency`: a volume in, a mask on its own voxel grid out."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from app_cdm.config import Method, SettingsError
from app_cdm.data.volume import Volume, VolumeError, read_volume, write_map, write_mask
from app_cdm.pipeline import CDMPipeline, Segmentation
from app_cdm.training.held_out import hardly_told_apart
from lib.configs.segmentation import InferRequest, option_table, read_device, read_request
from lib.models import METHODS, ModelMissingError, ModelStore
from lib.plain import plain
from lib.server.checks import MAX_TAG_LENGTH, is_tag

logger = logging.getLogger(__name__)

# What viewers show beside the name.
DESCRIPTIONS: dict[Method, str] = {
    "student": "Fastest: one pass of a small network that learned from cldf",
    "cldf": "Pixel decoder on features of a conditional diffusion model",
    "cdm_saliency": "Saliency map of a conditional diffusion model",
}
DIGEST_LENGTH = 8
TRAINED_ON = "trained on image-level tags; research use only, not a medical device"


@dataclass(frozen=True)
class Segmented:
    """One inference that is done, of which nothing has been written yet.

    Attributes:
        volume: the image.
        options: what was asked for.
        result: masks and maps.
        reply: JSON for the client.
        extension: suffix of the mask file that was asked for.
    """

    volume: Volume
    options: InferRequest
    result: Segmentation
    reply: dict[str, Any]
    extension: str


def segmentation_tasks(models: ModelStore, datastore: Datastore) -> dict[str, InferTask]:
    """One task a method, the most accurate first: 3D Slicer and OHIF preselect the first that `/info/` lists."""
    return {method: SegmentationTask(method, models, datastore) for method in METHODS}


class SegmentationTask(InferTask):  # type: ignore[misc]  # monailabel ships no types
    """Segments with one method of whichever published model is in service.

    Args:
        method: what makes the map.
        models: gives the pipeline; its newest weights are used by the next request.
        datastore: where maps are stored on request.
    """

    def __init__(self, method: Method, models: ModelStore, datastore: Datastore) -> None:
        super().__init__(type=InferType.SEGMENTATION, labels={}, dimension=3, description=f"{DESCRIPTIONS[method]}; {TRAINED_ON}")
        self._method: Method = method
        self._models = models
        self._datastore = datastore

    def is_valid(self) -> bool:
        """False, and so hidden from viewers, while there are no weights for this method."""
        return self._method in self._models.methods()

    def info(self) -> dict[str, Any]:
        """What `/info/` says of this task."""
        try:
            pipeline = self._models.pipeline_for(self._method)
        except ModelMissingError as error:
            logger.error("%s", error)
            return {"type": self.type, "labels": {}, "dimension": self.dimension, "description": str(error), "config": {}}
        return {
            "type": self.type,
            "labels": label_numbers(pipeline),
            "dimension": self.dimension,
            "description": self.description + "".join(f"; {name}: {text}" for name, text in warnings_of(pipeline).items()),
            "config": option_table(pipeline.settings_for(self._method), torch.cuda.is_available()),
        }

    def check(self, request: dict[str, Any]) -> None:
        """Reads a request without running it.

        Raises:
            SettingsError: a value is not allowed.
            ModelMissingError: there are no weights for this method.
        """
        self._options(request, self._models.pipeline_for(self._method))

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Segments `request["image"]`, a file or a folder of one DICOM series.

        Returns:
            A temporary mask file, which the caller removes, and the reply's JSON.

        Raises:
            SettingsError: a parameter is not allowed.
            VolumeError: the image cannot be used.
            ModelMissingError: there are no weights for this method.
        """
        done = self.segment(request)
        result, volume, reply = done.result, done.volume, done.reply
        if done.options.store_saliency:
            reply["saliency"] = self._store_maps("saliency", result.saliency, result, volume, request["image_id"])
        if done.options.store_uncertainty:
            reply["uncertainty"] = self._store_maps("uncertainty", result.uncertainty, result, volume, request["image_id"])
        mask_file = _temporary_file(done.extension)
        try:
            write_mask(result.mask, volume, mask_file)
        except BaseException:
            mask_file.unlink(missing_ok=True)
            raise
        return str(mask_file), plain(reply)

    def segment(self, request: dict[str, Any]) -> Segmented:
        """Segments `request["image"]` when it is its turn, and stores nothing; see `__call__`."""
        start = time.perf_counter()
        pipeline = self._models.pipeline_for(self._method, read_device(request.get("device")))
        options = self._options(request, pipeline)
        volume = _read(Path(request["image"]))
        extension = result_extension(options, volume)
        check_storable(options, request.get("image_id"))
        read_s = time.perf_counter() - start
        with self._models.network_turn():
            waited_s = time.perf_counter() - start - read_s
            result = _segment(pipeline, volume, options)
        reply = describe(result, options, label_numbers(pipeline))
        if warnings := warnings_of(pipeline, options.class_names):
            reply["warnings"] = warnings
        reply["device"] = self._models.device(options.device)
        reply["timings"] |= {"read": read_s, "waited": waited_s, "request": time.perf_counter() - start}
        return Segmented(volume, options, result, reply, extension)

    def _options(self, request: dict[str, Any], pipeline: CDMPipeline) -> InferRequest:
        return read_request(request, pipeline.settings_for(self._method), label_numbers(pipeline))

    def _store_maps(
        self, kind: str, maps: Mapping[str, np.ndarray], result: Segmentation, volume: Volume, image_id: str
    ) -> list[dict[str, str]]:
        """Stores one map a class as a label of the image, under a tag of its own; says where to fetch it."""
        stored = []
        for class_name, values in maps.items():
            tag = map_tag(kind, class_name)
            path = _temporary_file(".nii.gz")
            try:
                write_map(values, volume, path)
                info = {"class": class_name, "method": result.method, "model_version": result.model_version}
                label_id = self._datastore.save_label(image_id, str(path), tag, info)
            finally:
                path.unlink(missing_ok=True)
            url = f"/datastore/label?label={quote(label_id)}&tag={quote(tag)}"
            stored.append({"class": class_name, "label": label_id, "tag": tag, "url": url})
        return stored


def map_tag(kind: str, class_name: str) -> str:
    """Label tag of a class's map, which no other class has: with a digest where the name itself is no tag.

    Args:
        kind: `saliency` or `uncertainty`.
        class_name: any text.
    """
    tag = f"{kind}_{class_name}"
    if is_tag(tag):
        return tag
    digest = hashlib.sha256(class_name.encode()).hexdigest()[:DIGEST_LENGTH]
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", tag)[: MAX_TAG_LENGTH - 1 - DIGEST_LENGTH]
    return f"{readable}_{digest}"


def warnings_of(pipeline: CDMPipeline, class_names: Collection[str] | None = None) -> dict[str, str]:
    """Class -> what users must know of its masks: classes that a model hardly knows, by the held-out tags of its training.

    Args:
        pipeline: the model.
        class_names: that are asked for; all of the model by default.
    """
    recorded = dict(pipeline.config.training).get("held_out")
    scores = {key: value for key, value in (recorded if isinstance(recorded, Mapping) else {}).items() if isinstance(value, (int, float))}
    asked = pipeline.class_names if class_names is None else class_names
    return {
        name: f"masks may lie anywhere (held-out slices hardly told apart, AUC {auc:.2f})"
        for name, auc in hardly_told_apart(scores).items()
        if name in asked
    }


def label_numbers(pipeline: CDMPipeline) -> dict[str, int]:
    """Class name to mask value, numbered alphabetically from 1 as viewers assume."""
    return {name: number for number, name in enumerate(sorted(pipeline.class_names), start=1)}


def result_extension(options: InferRequest, volume: Volume) -> str:
    """File suffix of the mask: what was asked for, else PNG for a picture and NIfTI for anything else.

    Raises:
        SettingsError: a PNG is asked for, but the image has several slices.
    """
    extension = options.result_extension or (".png" if volume.kind == "image" else ".nii.gz")
    if extension == ".png" and volume.array.shape[2] != 1:
        raise SettingsError(f"result_extension = '.png': the image has {volume.array.shape[2]} slices; ask for '.nii.gz' or '.nrrd'")
    return extension


def check_storable(options: InferRequest, image_id: str | None) -> None:
    """Refuses to store maps of an image that the datastore does not have.

    Raises:
        SettingsError: maps are to be stored, but there is no place.
    """
    wanted = [name for name in ("store_saliency", "store_uncertainty") if getattr(options, name)]
    if wanted and not image_id:
        raise SettingsError(f"{wanted[0]} = true: needs an image of the datastore; PUT it to /datastore/image, then name it with ?image=")


def describe(result: Segmentation, options: InferRequest, labels: dict[str, int]) -> dict[str, Any]:
    """The reply's JSON."""
    uncertainty = {"slice_uncertainty": result.slice_uncertainty} if result.slice_uncertainty else {}
    return {
        "method": result.method,
        "label_names": labels,
        "class_scores": result.class_scores,
        "slice_scores": result.slice_scores,
        **uncertainty,
        "slicing_axis": result.slicing_axis,
        "network_evaluations": result.network_evaluations,
        "model_version": result.model_version,
        "timings": dict(result.timings),
        "settings": options.settings.to_dict(),
        "ignored_params": list(options.ignored),
    }


def _segment(pipeline: CDMPipeline, volume: Volume, options: InferRequest) -> Segmentation:
    try:
        return pipeline.segment(volume, options.settings, class_names=options.class_names)
    except (VolumeError, SettingsError):
        raise
    except ValueError as error:  # settings that contradict each other
        raise SettingsError(str(error)) from error


def _read(path: Path) -> Volume:
    try:
        return read_volume(path)
    except FileNotFoundError as error:
        raise VolumeError(f"{path.name} has vanished from the server's disk: choose another image") from error


def _temporary_file(suffix: str) -> Path:
    handle, name = tempfile.mkstemp(prefix="app_cdm_", suffix=suffix)
    os.close(handle)
    return Path(name)

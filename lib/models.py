"""Published models: found in the model folder, loaded once a device, reloaded when their files change."""

from __future__ import annotations

import json
import logging
import threading
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError

from app_cdm.config import Method
from app_cdm.pipeline import CDMPipeline
from lib.options import AppOptions
from lib.turns import Line
from lib.versions import ModelVersions, trained_names

logger = logging.getLogger(__name__)

INDEX_FILE = "model_index.json"

# The most accurate first, as in `CDMPipeline.methods`: viewers preselect the first one that is offered.
METHODS: tuple[Method, ...] = tuple(reversed(get_args(Method)))

# What a model folder must hold for a method beyond what every model has.
COMPONENT_OF: dict[Method, str] = {"cldf": "pixel_decoder", "student": "student"}

LOAD_ERRORS = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError)

Fingerprint = tuple[tuple[str, int, int], ...]
BEING_REPLACED: Fingerprint = ()


class ModelMissingError(Exception):
    """No published model can be loaded; the message says where one is looked for."""


class MethodMissingError(ModelMissingError):
    """The model in service has not been trained for a method; the message says for which ones it has."""


class ModelStore:
    """The pipeline in service, one copy a device.

    A request keeps the pipeline it was given: when newer weights appear in the folder, the next request gets them and
    those in flight finish with what they began with.

    Args:
        options: where models lie, which one is wanted and on which device it runs by default.
    """

    def __init__(self, options: AppOptions) -> None:
        self._options = options
        self._loaded: dict[str, tuple[Fingerprint, CDMPipeline]] = {}
        self._failed: dict[str, Fingerprint] = {}  # a device's weights that are not loaded again
        self._loading = threading.Lock()
        self._network = Line()

    def folder(self) -> Path | None:
        """Folder of the model in service, or None while none is complete."""
        return model_folder(self._options)

    def methods(self) -> tuple[Method, ...]:
        """What the next request can ask for, the most accurate first; weights are not loaded to find out."""
        folder = self.folder()
        if folder is None:
            return ()
        device = self.device()
        held = self._loaded.get(device)
        if held is not None and fingerprint(folder) in (BEING_REPLACED, held[0], self._failed.get(device)):
            return held[1].methods
        return known_methods(folder)

    def device(self, requested: str | None = None) -> str:
        """The device a request runs on.

        `cuda` on a machine without a GPU means the CPU, because MONAI Label's own clients send it by default; the
        device that was used is part of every reply.
        """
        wanted = requested if requested not in (None, "", "auto") else self._options.device
        if wanted == "cpu" or not torch.cuda.is_available():
            return "cpu"
        return "cuda" if wanted == "auto" or wanted is None else wanted

    def pipeline(self, requested_device: str | None = None) -> CDMPipeline:
        """The pipeline of the newest weights.

        Raises:
            ModelMissingError: there is no complete model folder, or it cannot be loaded.
        """
        device = self.device(requested_device)
        held = self._loaded.get(device)
        if held is not None and self._loading.locked():
            return held[1]  # nobody waits for weights that are just being read
        return self._newest(device)

    def _newest(self, device: str) -> CDMPipeline:
        """See `pipeline`; waits for weights that are just being read."""
        with self._loading:
            folder = self.folder()
            if folder is None:
                raise ModelMissingError(self.explain_missing())
            held = self._loaded.get(device)
            version = fingerprint(folder)
            if held is not None and version in (BEING_REPLACED, held[0], self._failed.get(device)):
                return held[1]
            try:
                pipeline = load(folder, version).to(device)
            except LOAD_ERRORS as error:
                if held is None:
                    raise ModelMissingError(f"model {folder.name!r} cannot be loaded: {error}") from error
                # A publication caught half-way, or a broken one: the server goes on with what it has.
                logger.exception("Model %s changed but cannot be loaded; still serving the previous weights", folder.name)
                # Memory may be free again soon, and what was read of a folder that changed meanwhile says nothing of its weights.
                if not isinstance(error, torch.OutOfMemoryError) and fingerprint(folder) == version:
                    self._failed[device] = version
                return held[1]
            logger.info("Model %s, version %s, loaded on %s", folder.name, pipeline.model_version, device)
            self._loaded[device] = (version, pipeline)
            self._failed.pop(device, None)
            return pipeline

    def pipeline_for(self, method: Method, requested_device: str | None = None) -> CDMPipeline:
        """The pipeline of the newest weights, if it has been trained for a method.

        Raises:
            ModelMissingError: there is no complete model folder, or it cannot be loaded.
            MethodMissingError: the model has not been trained for the method.
        """
        pipeline = self.pipeline(requested_device)
        if method not in pipeline.methods:
            pipeline = self._newest(self.device(requested_device))  # it may be what the weights that are being read bring
        if method not in pipeline.methods:
            raise MethodMissingError(
                f"{method!r} is not offered: the model in service (version {pipeline.model_version}) has been trained for "
                f"{list(pipeline.methods)}. Use one of these, or train {method!r} and publish the model; it is picked up without a restart."
            )
        return pipeline

    def explain_missing(self) -> str:
        """What to do while there is no model."""
        wanted = f"{self._options.model!r}" if self._options.model else "a published model"
        found = [folder.name for folder in published_models(self._options.model_dir)]
        return (
            f"no weights: {wanted} is not in {self._options.model_dir.name}/ (complete there: {found}). "
            f"A model is a folder with {INDEX_FILE} and *.safetensors; it is picked up without a restart."
        )

    def announce(self) -> None:
        """Loads the model so that the first click is not slower than the rest; says so clearly if there is none."""
        try:
            self.pipeline()
        except ModelMissingError as error:
            logger.error("The server starts without a model: %s", error)

    def network_turn(self) -> AbstractContextManager[None]:
        """Lets one request use the networks at a time, in the order in which they come: simultaneous ones could exhaust memory."""
        return self._network.turn()


def model_folder(options: AppOptions) -> Path | None:
    """Folder of the model that the options choose, in the version that is in service; None while it is not complete."""
    found = {folder.name for folder in published_models(options.model_dir)} | set(trained_names(options.model_dir))
    name = options.model if options.model is not None else min(found, default=None)
    return ModelVersions(options.model_dir, name).folder() if name is not None and name in found else None


def known_class_names(options: AppOptions) -> tuple[str, ...]:
    """The classes, alphabetically: those of the options, else the model's, read from its index alone; none without a model."""
    if options.classes:
        return options.classes
    folder = model_folder(options)
    return class_names_of(folder) if folder is not None else ()


def class_names_of(folder: Path) -> tuple[str, ...]:
    """The classes of a model, read from its index alone; none where that cannot be read."""
    try:
        names = read_index(folder)["description"]["class_names"]
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise ValueError(f"class_names = {names!r}: must be a list of names")
        return tuple(names)
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("The classes of model %s cannot be read: %s", folder.name, error)
        return ()


def known_methods(folder: Path) -> tuple[Method, ...]:
    """What a model has been trained for, the most accurate first, read from its index alone."""
    try:
        index = read_index(folder)
    except (OSError, ValueError) as error:
        logger.warning("The methods of model %s cannot be read: %s", folder.name, error)
        index = {}
    # A component that was left out is missing, or stands there as [null, null].
    components = {name: any(part) for name, part in index.items() if isinstance(part, list)}
    return tuple(method for method in METHODS if method not in COMPONENT_OF or components.get(COMPONENT_OF[method]))


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a model folder.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a JSON object.
    """
    index = json.loads((folder / INDEX_FILE).read_text())
    if not isinstance(index, dict):
        raise ValueError(f"{INDEX_FILE} is a JSON {type(index).__name__}: must be an object")
    return index


def load(folder: Path, version: Fingerprint) -> CDMPipeline:
    """Loads a model as it was when its fingerprint was taken.

    The files are read, not mapped into memory: weights overwritten in place would otherwise kill the whole process.

    Raises:
        OSError: the folder changed meanwhile, or is damaged.
    """
    pipeline = CDMPipeline.from_pretrained(folder, disable_mmap=True)
    if fingerprint(folder) != version:
        raise OSError(f"{folder.name} changed while it was read")
    return pipeline


def published_models(model_dir: Path) -> list[Path]:
    """Complete model folders, sorted by name: an index and at least one weights file."""
    if not model_dir.is_dir():
        return []
    return [
        folder
        for folder in sorted(model_dir.iterdir())
        # Folders with a dot in front are being written.
        if not folder.name.startswith(".") and (folder / INDEX_FILE).is_file() and any(folder.rglob("*.safetensors"))
    ]


def fingerprint(folder: Path) -> Fingerprint:
    """Name, size and modification time of every file of a model: differs whenever something was published.

    `BEING_REPLACED` where files vanish while they are looked at.
    """
    try:
        files = sorted(path for pattern in ("*.safetensors", "*.json") for path in folder.rglob(pattern))
        return tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    except OSError:
        return BEING_REPLACED

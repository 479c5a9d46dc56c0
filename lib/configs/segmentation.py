"""Option tables of the infer tasks, and the one place where a viewer's answers become typed settings."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from dataclasses import dataclass
from typing import Any, Literal, get_args

from app_cdm.config import (
    Components,
    GateRule,
    MaskSettings,
    Method,
    Refinement,
    SaliencyMode,
    SaliencySettings,
    SegmentationSettings,
    SettingsError,
    ThresholdRule,
)
from lib.options import Device

RESULT_EXTENSIONS = (".nrrd", ".nii.gz", ".nii", ".png")

SALIENCY_FIELDS = frozenset(item.name for item in dataclasses.fields(SaliencySettings))
MASK_FIELDS = frozenset(item.name for item in dataclasses.fields(MaskSettings))

# Of the saliency settings, what matters to every method: the gate's classifier takes as many slices at once.
GATE_FIELDS = frozenset({"batch_images"})
TASK_FIELDS = frozenset({"device", "result_extension", "store_saliency", "label_prompt", "slicing_axis"})

# What MONAI Label and its clients add to every request; not ours to act on, and no reason to complain.
HOST_KEYS = frozenset(
    {"model", "image", "image_id", "images", "description", "client_id", "user", "session", "logging", "server_address"}
    | {"result_dtype", "result_compress", "save_label", "label_tag", "multi_gpu", "gpus", "max_workers", "max_batch_size"}
)


@dataclass(frozen=True)
class InferRequest:
    """One request, read and checked.

    Attributes:
        settings: how to segment.
        class_names: classes asked for, or None for all.
        device: where to run.
        result_extension: file suffix of the mask, or None to follow the image.
        store_saliency: also store saliency maps in the datastore.
        store_uncertainty: also store uncertainty maps there.
        ignored: parameters that mean nothing here, named back in the reply.
    """

    settings: SegmentationSettings
    class_names: tuple[str, ...] | None = None
    device: Device = "auto"
    result_extension: str | None = None
    store_saliency: bool = False
    store_uncertainty: bool = False
    ignored: tuple[str, ...] = ()


def option_table(defaults: SegmentationSettings, has_cuda: bool) -> dict[str, Any]:
    """What viewers show for a method: list = combo box (first item is the default), bool = checkbox, anything else = field.

    Args:
        defaults: settings stored with the model for this method.
        has_cuda: whether there is a GPU to choose.
    """
    mask, is_saliency = defaults.mask, defaults.method == "cdm_saliency"
    return {
        **(_saliency_options(defaults.saliency) if is_saliency else {}),
        "threshold_rule": _default_first(mask.threshold_rule, get_args(ThresholdRule)),
        "fixed_threshold": mask.fixed_threshold,
        "gate": _default_first(mask.gate, get_args(GateRule)),
        "gate_threshold": mask.gate_threshold,
        "refinement": _default_first(mask.refinement, get_args(Refinement)),
        "components": _default_first(mask.components, get_args(Components)),
        "device": ["auto", "cuda", "cpu"] if has_cuda else ["auto", "cpu"],
        "store_saliency": False,
        **({} if is_saliency else {"store_uncertainty": False}),
    }


def read_request(request: dict[str, Any], defaults: SegmentationSettings, labels: dict[str, int]) -> InferRequest:
    """Reads a request as viewers send it: values may be strings, and missing or empty ones mean the default.

    Args:
        request: parameters of the request; besides the option table, every field of `MaskSettings` is understood, as are
            `slicing_axis`, `label_prompt`, `result_extension` and, for `cdm_saliency`, every field of `SaliencySettings`.
        defaults: settings stored with the model for the method asked for.
        labels: class name to mask value.

    Raises:
        SettingsError: a value is not allowed; the message names it and what is allowed.
    """
    given = {key: value for key, value in request.items() if value is not None and value != ""}
    saliency_fields, task_fields = _fields_of(defaults.method)
    saliency = {key: _read(key, value, SaliencySettings) for key, value in given.items() if key in saliency_fields}
    mask = {key: _read(key, value, MaskSettings) for key, value in given.items() if key in MASK_FIELDS}
    axis = {key: _read(key, value, SegmentationSettings) for key, value in given.items() if key == "slicing_axis"}
    wants_uncertainty = "store_uncertainty" in task_fields and _read_bool("store_uncertainty", given.get("store_uncertainty", False))
    return InferRequest(
        settings=defaults.replace(saliency=defaults.saliency.replace(**saliency), mask=defaults.mask.replace(**mask), **axis),
        class_names=_read_label_prompt(given.get("label_prompt"), labels),
        device=read_device(given.get("device")),
        result_extension=_read_extension(given.get("result_extension")),
        store_saliency=_read_bool("store_saliency", given.get("store_saliency", False)),
        store_uncertainty=wants_uncertainty,
        ignored=tuple(sorted(set(request) - saliency_fields - MASK_FIELDS - HOST_KEYS - task_fields)),
    )


def read_device(value: Any) -> Device:
    """The device a request asks for; nothing is `auto`, and a numbered GPU is `cuda`.

    Raises:
        SettingsError: there is no such kind of device.
    """
    name = "auto" if value in (None, "") else value
    if isinstance(name, str) and name.startswith("cuda:"):
        name = "cuda"
    device: Device | None = next((item for item in get_args(Device) if item == name), None)
    if device is None:
        raise SettingsError(f"device = {value!r}: must be one of {list(get_args(Device))}")
    return device


def _saliency_options(saliency: SaliencySettings) -> dict[str, Any]:
    return {
        "mode": _default_first(saliency.mode, get_args(SaliencyMode)),
        "noise_levels": ", ".join(f"{level:g}" for level in saliency.noise_levels),
        "reference_noise_level": saliency.reference_noise_level,
        "guidance_scale": saliency.guidance_scale,
        "seed": saliency.seed,
    }


def _fields_of(method: Method) -> tuple[frozenset[str], frozenset[str]]:
    """Fields of `SaliencySettings`, and parameters of the task itself, that mean something to a method."""
    if method == "cdm_saliency":  # its map is no probability, so there is no uncertainty to store
        return SALIENCY_FIELDS, TASK_FIELDS
    return GATE_FIELDS, TASK_FIELDS | {"store_uncertainty"}


def _default_first(default: str, allowed: tuple[str, ...]) -> list[str]:
    return [default, *(item for item in allowed if item != default)]


def _read(name: str, value: Any, settings: type[Any]) -> Any:
    """One field of a settings class from a JSON value or a string; the class itself checks ranges and choices."""
    hint = typing.get_type_hints(settings)[name]
    if typing.get_origin(hint) is tuple:
        items = value.replace(";", ",").strip("[]() ").split(",") if isinstance(value, str) else value
        items = items if isinstance(items, list | tuple) else [items]
        return tuple(_read_number(name, item, float) for item in items if item != "")
    if hint is bool:
        return _read_bool(name, value)
    if hint in (int, float):
        return _read_number(name, value, hint)
    if typing.get_origin(hint) is Literal and not isinstance(value, str):
        raise SettingsError(f"{name} = {value!r}: must be one of {list(get_args(hint))}")
    return value


def _read_number(name: str, value: Any, kind: type[Any]) -> Any:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or (kind is int and number != int(number)):
        raise SettingsError(f"{name} = {value!r}: must be a {'whole ' if kind is int else ''}number")
    return kind(number)


def _read_bool(name: str, value: Any) -> bool:
    words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if isinstance(value, bool | int | str) and str(value).lower() in words:
        return words[str(value).lower()]
    raise SettingsError(f"{name} = {value!r}: must be true or false")


def _read_extension(value: Any) -> str | None:
    if value is None:
        return None
    extension = f".{value.lstrip('.')}" if isinstance(value, str) else value
    if extension not in RESULT_EXTENSIONS:
        raise SettingsError(f"result_extension = {value!r}: must be one of {list(RESULT_EXTENSIONS)}")
    return str(extension)


def _read_label_prompt(value: Any, labels: dict[str, int]) -> tuple[str, ...] | None:
    """Class names behind `label_prompt`; None, for all of them, when nothing is named."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise SettingsError(f"label_prompt = {value!r}: must be a list of label numbers, of {labels}") from error
    if value is None or value == []:
        return None
    names = {number: name for name, number in labels.items()}
    wanted = value if isinstance(value, list) else [value]
    if not all(isinstance(item, int) and not isinstance(item, bool) and item in names for item in wanted):
        raise SettingsError(f"label_prompt = {value!r}: must be a list of label numbers, of {labels}")
    return tuple(names[number] for number in sorted(set(wanted)))

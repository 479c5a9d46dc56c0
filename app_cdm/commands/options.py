"""Options that several commands share."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import get_args

import torch
from diffusers.utils.logging import disable_progress_bar

from app_cdm.config import Method, SegmentationSettings, SettingsError
from app_cdm.data.tags import read_tags
from app_cdm.pipeline import CDMPipeline
from app_cdm.training.run import TaggedFolder

SHARED = ("batch_images",)  # settings of the saliency that every method uses


def add_tagged_folders(parser: argparse.ArgumentParser) -> None:
    """`--images`, `--tags`, `--pattern`, `--classes`, `--split` and `--exclude`."""
    parser.add_argument("--images", type=Path, required=True, action="append", help="folder of images (repeat for several)")
    parser.add_argument("--tags", type=Path, required=True, action="append", help="tag table of the folder at the same place")
    parser.add_argument("--pattern", action="append", help="file name of an image, with {image} and {suffix}; default {image}{suffix}")
    parser.add_argument(
        "--classes",
        action="append",
        metavar="NAME=COLUMN",
        help="class and its 0/1 column, or NAME=COLUMN=VALUE, for tables by slice or image",
    )
    parser.add_argument("--split", help="rows of this split only")
    parser.add_argument("--exclude", metavar="COLUMN", help="leave out rows with 1 in this column")


def tagged_folders(options: argparse.Namespace) -> list[TaggedFolder]:
    """Reads what `add_tagged_folders` asked for.

    Raises:
        ValueError: the options do not fit together, or a tag table is malformed.
    """
    unnamed = [item for item in options.classes or () if "=" not in item]
    if unnamed:
        raise ValueError(f"--classes {unnamed[0]!r}: must be NAME=COLUMN, such as tumor=has_lesion")
    columns = dict(item.split("=", 1) for item in options.classes) if options.classes else None
    patterns = options.pattern or ["{image}{suffix}"] * len(options.images)
    if not len(options.images) == len(options.tags) == len(patterns):
        raise ValueError("--images, --tags and --pattern must be given equally often")
    return [
        TaggedFolder(images, read_tags(tags, columns, options.split, options.exclude), pattern)
        for images, tags, pattern in zip(options.images, options.tags, patterns, strict=True)
    ]


def add_model(parser: argparse.ArgumentParser, with_method: bool = True) -> None:
    """`--model`, `--device`, `--set` and, where it is to be chosen, `--method`."""
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    add_device(parser)
    if with_method:
        parser.add_argument("--method", choices=get_args(Method), help="default: the most accurate one that the model is trained for")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="a setting of SaliencySettings or MaskSettings, or slicing_axis; such as mode='\"reference\"' or num_draws=4",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """`--device`; `choose_device` reads it."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, or cuda:N for GPU N (default: %(default)s)")


def choose_device(name: str) -> str:
    """The torch device that `--device` means: `auto` is a GPU where there is one.

    Raises:
        ValueError: it is none of those, or the GPU is not there.
    """
    asked = re.fullmatch(r"auto|cpu|cuda(?::([0-9]+))?", name)
    if asked is None:
        raise ValueError(f"--device {name}: must be auto, cpu, cuda, or cuda:N for GPU N")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: this machine has no usable GPU; leave it out or say cpu")
    if asked[1] is not None and int(asked[1]) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: the GPUs here are cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    return name


def load_model(options: argparse.Namespace) -> tuple[CDMPipeline, SegmentationSettings]:
    """The pipeline on its device, and its default settings with what `--set` changes.

    Raises:
        ValueError: a setting is unknown or not allowed, or the device is not there.
    """
    device = choose_device(options.device)
    disable_progress_bar()  # of loading; the commands show their own
    pipeline = CDMPipeline.from_pretrained(options.model)
    pipeline.to(device)
    defaults = pipeline.settings_for(options.method) if options.method else pipeline.default_settings
    return pipeline, change_settings(defaults, options.set)


def change_settings(settings: SegmentationSettings, changes: list[str]) -> SegmentationSettings:
    """Applies `NAME=JSON` changes to settings; bare words are taken as strings.

    Raises:
        SettingsError: a name is unknown or a value not allowed.
    """
    for change in changes:
        name, _, text = change.partition("=")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        if hasattr(settings.saliency, name) and settings.method != "cdm_saliency" and name not in SHARED:
            raise SettingsError(f"--set {name}: means nothing to {settings.method}; add --method cdm_saliency, or leave it out")
        if hasattr(settings.saliency, name):
            settings = settings.replace(saliency=settings.saliency.replace(**{name: value}))
        elif hasattr(settings.mask, name):
            settings = settings.replace(mask=settings.mask.replace(**{name: value}))
        elif name == "slicing_axis":
            settings = settings.replace(slicing_axis=value)
        else:
            known = sorted({*settings.saliency.to_dict(), *settings.mask.to_dict(), "slicing_axis"})
            raise SettingsError(f"--set {name}: no such setting; there are {known}")
    return settings

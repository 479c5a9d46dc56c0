"""Dice of fresh masks against the final labels of a datastore; never used to train or to choose anything."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import Datastore

from app_cdm.data.volume import read_volume
from app_cdm.metrics.overlap import dice
from app_cdm.pipeline import CDMPipeline
from lib.index import enough_space
from lib.server.errors import OF_ONE_IMAGE, explain
from lib.tags.mask import class_numbers, on_image_grid
from lib.tags.submission import FINAL
from lib.turns import Turns

Say = Callable[[str], None]


def score_final_labels(
    pipeline: CDMPipeline, datastore: Datastore, class_names: Sequence[str], held_out: Collection[str], turns: Turns, say: Say
) -> dict[str, Any]:
    """Volume Dice of every image with a final label, by class.

    Args:
        pipeline: makes the masks, by its most accurate method with its own settings.
        datastore: images and labels; of a DICOMweb server, the labels that were submitted to this server.
        class_names: that labels are numbered by where a viewer sent no names.
        held_out: images of held-out patients.
        turns: gives the network.
        say: told what was found.

    Returns:
        `method`; `dice`: class -> `mean`, `n`, `mean_held_out`, `n_held_out` and `num_undefined` (mask and label both empty, not in the
        mean); `images`: image -> `dice` by class and `is_held_out`, or `error`.

    Raises:
        StoppedError: the work is to end.
        NoSpaceError: no other image would fare better.
    """
    images: dict[str, dict[str, Any]] = {}
    for image in labelled_images(datastore):
        try:
            with enough_space():
                images[image] = {"dice": _score(pipeline, datastore, class_names, image, turns), "is_held_out": image in held_out}
        except (*OF_ONE_IMAGE, ValueError) as error:
            images[image] = {"error": explain(error)}
        say(f"final label of {image}: {images[image].get('error') or _shown(images[image]['dice'])}")
    scored = [entry for entry in images.values() if "dice" in entry]
    by_class = {name: _summary(name, scored) for name in pipeline.class_names if any(name in entry["dice"] for entry in scored)}
    return {"method": pipeline.methods[0], "dice": by_class, "images": images}


def labelled_images(datastore: Datastore) -> list[str]:
    """Images whose final label is on this machine, by name; DICOMweb's own would ask the PACS for series."""
    if isinstance(datastore, DICOMWebDatastore):
        return sorted(LocalDatastore.get_labeled_images(datastore))
    return sorted(datastore.get_labeled_images())


def _score(pipeline: CDMPipeline, datastore: Datastore, class_names: Sequence[str], image: str, turns: Turns) -> dict[str, float]:
    volume = read_volume(Path(datastore.get_image_uri(image)))
    reference = on_image_grid(read_volume(Path(LocalDatastore.get_label_uri(datastore, image, FINAL))), volume)
    info = LocalDatastore.get_label_info(datastore, image, FINAL)
    with turns.turn():
        mask = pipeline.segment(volume).mask
    numbers = class_numbers(class_names, info.get("label_info"))
    return {
        name: dice(mask == pipeline.class_names.index(name) + 1, np.isin(reference, values))
        for name, values in numbers.items()
        if name in pipeline.class_names
    }


def _summary(name: str, scored: list[dict[str, Any]]) -> dict[str, Any]:
    pairs = [(entry["dice"][name], entry["is_held_out"]) for entry in scored if name in entry["dice"]]
    defined = [(value, is_held_out) for value, is_held_out in pairs if not np.isnan(value)]
    held_out = [value for value, is_held_out in defined if is_held_out]
    return {
        "mean": float(np.mean([value for value, _ in defined])) if defined else float("nan"),
        "n": len(defined),
        "mean_held_out": float(np.mean(held_out)) if held_out else float("nan"),
        "n_held_out": len(held_out),
        "num_undefined": len(pairs) - len(defined),
    }


def _shown(by_class: dict[str, float]) -> str:
    return "Dice " + ", ".join(f"{name} {value:.3f}" for name, value in by_class.items())

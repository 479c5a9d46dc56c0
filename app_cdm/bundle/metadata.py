"""`configs/metadata.json`: what the bundle is, and what goes in and out of its network."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import app_cdm
from app_cdm.pipeline import CDMPipeline

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
INTENDED_USE = "research use only, not a medical device"
# Optional dependencies of MONAI that its runner and its evaluator need; this package itself uses neither.
RUNNER_PACKAGES = {"fire": "0.7.1", "pytorch-ignite": "0.5.5"}


def bundle_metadata(pipeline: CDMPipeline, name: str, has_license: bool) -> dict[str, Any]:
    """Metadata that MONAI's schema accepts.

    Args:
        pipeline: a model with a student.
        name: of the bundle.
        has_license: whether the bundle holds a licence of its weights.
    """
    classes = ", ".join(pipeline.class_names)
    return {
        "schema": SCHEMA,
        "version": app_cdm.__version__,
        "changelog": {app_cdm.__version__: f"weights {pipeline.model_version}"},
        "monai_version": _plain_version("monai"),
        "pytorch_version": _plain_version("torch"),
        "numpy_version": _plain_version("numpy"),
        "required_packages_version": {"nibabel": version("nibabel"), "safetensors": version("safetensors"), **RUNNER_PACKAGES},
        "name": name,
        "task": f"Segmentation of {classes} in 3D images, slice by slice",
        "description": (
            "A small 2D U-Net that sees a slice with its neighbours. It learned from pseudo-masks of a conditional diffusion model, "
            f"which was trained on image-level tags alone. Weights {pipeline.model_version} of app_cdm."
        ),
        "authors": "the authors of app_cdm",
        "copyright": "see LICENSE" if has_license else "no licence came with these weights: ask who trained them",
        "data_type": "nibabel",
        "image_classes": "one channel of any intensity scale",
        "pred_classes": ", ".join(f"{value} is {text}" for value, text in _labels(pipeline).items()),
        "intended_use": INTENDED_USE,
        "network_data_format": _network_data_format(pipeline),
    }


def _network_data_format(pipeline: CDMPipeline) -> dict[str, Any]:
    """Input and output of the network itself, and of the whole after postprocessing."""
    assert pipeline.student is not None
    neighbours, size = pipeline.student.config.num_neighbours, pipeline.description.preprocess.image_size
    square = {"type": "image", "spatial_shape": [size, size], "dtype": "float32", "is_patch_data": False}
    slices = {str(n + neighbours): _slice_name(n) for n in range(-neighbours, neighbours + 1)}
    log_odds = {str(index): f"log-odds of {name}" for index, name in enumerate(pipeline.class_names)}
    mask = {"type": "image", "format": "segmentation", "spatial_shape": ["*", "*", "*"], "dtype": "uint8", "is_patch_data": False}
    return {
        "inputs": {
            "image": {
                **square,
                "format": "magnitude",
                "modality": "n/a",
                "num_channels": len(slices),
                "value_range": [-1, 1],
                "channel_def": slices,
            }
        },
        "outputs": {"pred": {**square, "format": "classes", "num_channels": len(log_odds), "value_range": [], "channel_def": log_odds}},
        "post_processed_outputs": {
            "pred": {**mask, "num_channels": 1, "value_range": [0, len(log_odds)], "channel_def": _labels(pipeline)},
        },
    }


def _labels(pipeline: CDMPipeline) -> dict[str, str]:
    return {str(value): name for value, name in enumerate(("background", *pipeline.class_names))}


def _slice_name(offset: int) -> str:
    if offset == 0:
        return "the slice"
    return f"{abs(offset)} before it" if offset < 0 else f"{offset} after it"


def _plain_version(package: str) -> str:
    return version(package).split("+")[0]

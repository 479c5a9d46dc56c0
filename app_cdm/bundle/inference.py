"""`configs/inference.json`: network, transforms and evaluator in the syntax of MONAI's `ConfigParser`."""

from __future__ import annotations

from typing import Any

from app_cdm.config import PreprocessSettings
from app_cdm.networks.student import HEAD_CHANNELS, NORM_GROUPS, StudentNetwork

BATCH_SLICES = 16


def inference_config(student: StudentNetwork, preprocess: PreprocessSettings, threshold: float) -> dict[str, Any]:
    """The whole configuration; what a user may want to change stands on top.

    Args:
        student: the network.
        preprocess: how volumes became slices in training.
        threshold: on the probability of a class.
    """
    return {
        "imports": ["$from safetensors.torch import load_file", "$import sys", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": "$@bundle_root + '/eval'",
        "image_pattern": "*.nii*",
        "ckpt_path": "$@bundle_root + '/models/model.safetensors'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "threshold": threshold,
        "network_body": _network_body(student),
        "network_head": {
            "_target_": "torch.nn.Conv2d",
            "in_channels": HEAD_CHANNELS,
            "out_channels": student.config.num_classes,
            "kernel_size": 1,
        },
        "network_def": "$torch.nn.Sequential(@network_body, torch.nn.SiLU(), @network_head)",
        "network": "$@network_def.to(@device)",
        "preprocessing": _preprocessing(preprocess),
        "datalist": {"_target_": "cdm_student.find_images", "folder": "@dataset_dir", "pattern": "@image_pattern"},
        "dataset": {"_target_": "Dataset", "data": "$[{'image': path} for path in @datalist]", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "shuffle": False, "num_workers": 0},
        "inferer": {
            "_target_": "cdm_student.StudentInferer",
            "image_size": preprocess.image_size,
            "num_neighbours": student.config.num_neighbours,
            "batch_slices": BATCH_SLICES,
        },
        "postprocessing": _postprocessing(),
        **_execution(),
    }


def _execution() -> dict[str, Any]:
    """The evaluator, and what the runner does before and with it; weights are safetensors, so MONAI's `CheckpointLoader` has no part."""
    return {
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "initialize": [
            "$sys.path.insert(1, @bundle_root + '/scripts')",
            "$@network_def.load_state_dict(load_file(@ckpt_path))",
        ],
        "run": ["$@evaluator.run()"],
    }


def _network_body(student: StudentNetwork) -> dict[str, Any]:
    """MONAI's `UNet` with the arguments that `StudentNetwork` gives it."""
    channels = list(student.config.channels)
    return {
        "_target_": "UNet",
        "spatial_dims": 2,
        "in_channels": 2 * student.config.num_neighbours + 1,
        "out_channels": HEAD_CHANNELS,
        "channels": channels,
        "strides": [2] * (len(channels) - 1),
        "num_res_units": student.config.num_res_units,
        "norm": ["GROUP", {"num_groups": NORM_GROUPS}],
        "act": ["SWISH", {}],
        "dropout": student.config.dropout,
    }


def _preprocessing(settings: PreprocessSettings) -> dict[str, Any]:
    """Volume to (rows, columns, slices) in [-1, 1], cropped in-plane."""
    scale = {
        "_target_": "cdm_student.scale_by_foreground",
        "_mode_": "callable",
        "lower": settings.lower_percentile,
        "upper": settings.upper_percentile,
    }
    box = {"_target_": "cdm_student.foreground_box", "_mode_": "callable", "margin": settings.crop_margin}
    crop = {"_target_": "CropForegroundd", "keys": "image", "source_key": "image", "select_fn": box, "allow_smaller": True}
    return {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader", "ensure_channel_first": True},
            {"_target_": "cdm_student.SliceOrientationd", "keys": "image"},
            {"_target_": "Lambdad", "keys": "image", "func": scale},
            *([crop] if settings.crop_foreground else []),
            {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -1, "a_max": 1, "b_min": -1, "b_max": 1, "clip": True},
        ],
    }


def _postprocessing() -> dict[str, Any]:
    """Probabilities to a label map on the source grid, saved as `<name>_mask.nii.gz`."""
    labels = {"_target_": "cdm_student.label_map", "_mode_": "callable", "threshold": "@threshold"}
    return {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "Lambdad", "keys": "pred", "func": labels},
            {"_target_": "Invertd", "keys": "pred", "orig_keys": "image", "transform": "@preprocessing", "nearest_interp": True},
            {
                "_target_": "SaveImaged",
                "keys": "pred",
                "output_dir": "@output_dir",
                "output_postfix": "mask",
                "output_dtype": "uint8",
                "resample": False,
                "separate_folder": False,
                "print_log": False,
            },
        ],
    }

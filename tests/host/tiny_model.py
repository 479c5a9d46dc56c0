"""A published model of the real kind, tiny and untrained: two classes unless others are given, 32 pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from app_cdm.cldf.features import FeatureSettings
from app_cdm.config import MaskSettings, PreprocessSettings, SaliencySettings, SegmentationSettings
from app_cdm.networks.decoder import PixelDecoder
from app_cdm.networks.presets import NetworkSettings, build_classifier, build_condition_embedding, build_scheduler, build_unet
from app_cdm.networks.student import StudentNetwork
from app_cdm.pipeline import PROBABILITY_MASK, CDMPipeline, ModelDescription
from tests.host.answers import METHODS

CLASS_NAMES = ("edema", "tumor")
NETWORKS = NetworkSettings(32, 2, (16, 32), 1, 1, 8, (16, 32))


def save_tiny_model(
    folder: Path,
    seed: int = 0,
    methods: Sequence[str] = METHODS,
    class_names: Sequence[str] = CLASS_NAMES,
    training: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the model folder; another seed gives other weights and so another model version."""
    torch.manual_seed(seed)
    # Nothing that an untrained network says looks like anything, so what it says is the mask.
    as_it_is = replace(PROBABILITY_MASK, refinement="none")
    description = ModelDescription(
        class_names=tuple(class_names),
        patch_size=NETWORKS.patch_size,
        preprocess=PreprocessSettings(image_size=NETWORKS.image_size),
        # The gate of an untrained classifier means nothing: let it pass every slice.
        segmentation=SegmentationSettings(saliency=SaliencySettings(num_draws=1), mask=MaskSettings(gate_threshold=0.0)),
        cldf_mask=as_it_is,
        student_mask=as_it_is,
    )
    pipeline = CDMPipeline(
        unet=build_unet(NETWORKS),
        condition_embedding=build_condition_embedding(NETWORKS, len(class_names)),
        classifier=build_classifier(NETWORKS, len(class_names)),
        scheduler=build_scheduler(),
        description=description.to_dict(),
        pixel_decoder=tiny_decoder(len(class_names)) if "cldf" in methods else None,
        student=tiny_student(len(class_names)) if "student" in methods else None,
        training=dict(training or {}),
    )
    pipeline.save_pretrained(folder)
    return folder


def tiny_decoder(num_classes: int = len(CLASS_NAMES)) -> PixelDecoder:
    """An untrained decoder that is of two minds about every pixel."""
    features = FeatureSettings(blocks=(0, 1))
    views = len(features.null_levels) + len(features.contrast_levels)
    in_channels = [views * channels for channels in reversed(NETWORKS.block_out_channels)]
    decoder = PixelDecoder(num_classes, in_channels, features.to_dict(), hidden_channels=16, embedding_dim=8, num_background=2)
    decoder.spread.fill_(0.25)
    return decoder


def tiny_student(num_classes: int = len(CLASS_NAMES)) -> StudentNetwork:
    """An untrained student whose answers differ from pixel to pixel."""
    return StudentNetwork(num_classes, channels=(8, 16), num_res_units=1)

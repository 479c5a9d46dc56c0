"""Tiny real networks, for the tests of everything that uses one."""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler

from app_cdm.networks.presets import NetworkSettings, build_classifier, build_condition_embedding, build_scheduler, build_unet
from app_cdm.saliency.base import SaliencyInputs, SaliencyModel

TINY = NetworkSettings(16, 2, (16, 32), 1, 1, 8, (16, 32))


def tiny_saliency_model(
    num_classes: int = 2, patch_size: int = 2, prediction_type: str = "v_prediction", dtype: torch.dtype = torch.float32, seed: int = 0
) -> SaliencyModel:
    """Untrained networks whose condition matters as much as their timestep, so that no map is all but zero."""
    torch.manual_seed(seed)
    settings = TINY.replace(patch_size=patch_size)
    scheduler = DDPMScheduler.from_config(build_scheduler().config, prediction_type=prediction_type)
    networks = build_unet(settings), build_condition_embedding(settings, num_classes), build_classifier(settings, num_classes)
    for network in networks:
        torch.nn.Module.to(network.eval().requires_grad_(False), dtype)
    unet, embedding, classifier = networks
    embedding.class_vectors.mul_(6)
    unet.conv_out.weight.mul_(5)
    return SaliencyModel(unet, embedding, classifier, scheduler, patch_size)


def tiny_inputs(count: int = 3, class_index: int = 1, first_index: int = 4, seed: int = 1) -> SaliencyInputs:
    """Slices with a body in the middle, one of them of unknown position."""
    generator = torch.Generator().manual_seed(seed)
    slices = torch.full((count, 1, 16, 16), -1.0)
    slices[:, :, 2:14, 2:14] = torch.rand(count, 1, 12, 12, generator=generator) * 1.6 - 0.7
    positions = torch.linspace(0.2, 0.9, count)
    positions[-1] = torch.nan
    return SaliencyInputs(slices, positions, tuple(range(first_index, first_index + count)), class_index)


def as_double(inputs: SaliencyInputs) -> SaliencyInputs:
    """The same slices in float64, for comparison with finite differences and formulas."""
    return SaliencyInputs(inputs.slices.double(), inputs.positions, inputs.slice_indices, inputs.class_index)

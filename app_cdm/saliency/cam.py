"""LayerCAM of the classifier on clean slices."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from app_cdm.config import SaliencySettings
from app_cdm.saliency.base import SaliencyInputs, SaliencyModel, chunks

NUM_STAGES = 2


def layer_cam_saliency(model: SaliencyModel, inputs: SaliencyInputs, settings: SaliencySettings) -> torch.Tensor:
    """`layer_cam` as a saliency mode of its own; of the settings only `batch_images` is used."""
    return layer_cam(model, inputs, settings.batch_images)


def layer_cam(model: SaliencyModel, inputs: SaliencyInputs, batch_images: int = 64) -> torch.Tensor:
    """Mean over the last two stages of sum_k relu(relu(dy/dA_k) A_k), each scaled to unit peak (Jiang et al. 2021).

    The slice and its mirror image are averaged.

    Args:
        model: the networks.
        inputs: S slices and the class.
        batch_images: most images in one call.

    Returns:
        `(S, H, W)` float32 in [0, 1].
    """
    return average_with_mirror(inputs, model.device, batch_images, lambda slices: _layer_cam(model, slices, inputs.class_index))


def average_with_mirror(
    inputs: SaliencyInputs, device: torch.device, batch_images: int, compute: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Mean of the map of a slice and the mirrored map of its mirror image, on the CPU.

    Args:
        inputs: S slices.
        device: where the classifier lives.
        batch_images: most images in one call of `compute`.
        compute: gives `(B, H, W)` maps for `(B, 1, H, W)` slices.

    Returns:
        `(S, H, W)`.
    """
    maps = []
    for part in chunks(inputs, 1, batch_images):
        slices = part.slices.to(device)
        maps.append(((compute(slices) + compute(slices.flip(-1)).flip(-1)) / 2).cpu())
    return torch.cat(maps)


def _layer_cam(model: SaliencyModel, slices: torch.Tensor, class_index: int) -> torch.Tensor:
    with torch.enable_grad():
        timesteps = torch.zeros(slices.shape[0], dtype=torch.long, device=slices.device)
        logits, stages = model.classifier.forward_features(slices.detach().requires_grad_(True), timesteps)
        chosen = stages[-NUM_STAGES:]
        gradients = torch.autograd.grad(logits[:, class_index].sum(), chosen)
    total = torch.zeros(slices.shape[0], *slices.shape[2:], device=slices.device)
    for activation, gradient in zip(chosen, gradients, strict=True):
        cam = (activation.detach() * gradient.clamp_min(0)).clamp_min(0).sum(dim=1, keepdim=True).float()
        cam = F.interpolate(cam, size=slices.shape[2:], mode="bilinear", align_corners=False)[:, 0]
        total += cam / cam.flatten(1).amax(dim=1).clamp_min(1e-12)[:, None, None]
    return total / len(chosen)

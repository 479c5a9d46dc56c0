"""LayerCAM of the classifier on clean slices."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


def resize_to_slice(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Bilinear interpolation of maps of the classifier's stages that puts every value where the network looked.

    Its convolutions of stride 2 are padded on both sides, so place j of a stage with stride s is centred on pixel s j. The usual
    interpolation (`align_corners=False`) takes it for the middle of s pixels and moves the map (s - 1) / 2 pixels down and right.

    Args:
        maps: `(B, 1, h, w)`.
        size: H and W of the slice, multiples of h and w.

    Returns:
        `(B, 1, H, W)`; the pixels behind the last place have its value.
    """
    height, width = (full // places for full, places in zip(size, maps.shape[2:], strict=True))
    inner = ((maps.shape[2] - 1) * height + 1, (maps.shape[3] - 1) * width + 1)
    return F.pad(F.interpolate(maps, size=inner, mode="bilinear", align_corners=True), (0, width - 1, 0, height - 1), mode="replicate")


def _layer_cam(model: SaliencyModel, slices: torch.Tensor, class_index: int) -> torch.Tensor:
    with torch.enable_grad():
        timesteps = torch.zeros(slices.shape[0], dtype=torch.long, device=slices.device)
        logits, stages = model.classifier.forward_features(slices.detach().requires_grad_(True), timesteps)
        chosen = stages[-NUM_STAGES:]
        gradients = torch.autograd.grad(logits[:, class_index].sum(), chosen)
    total = torch.zeros(slices.shape[0], *slices.shape[2:], device=slices.device)
    for activation, gradient in zip(chosen, gradients, strict=True):
        cam = (activation.detach() * gradient.clamp_min(0)).clamp_min(0).sum(dim=1, keepdim=True).float()
        cam = resize_to_slice(cam, slices.shape[2:])[:, 0]
        total += cam / cam.flatten(1).amax(dim=1).clamp_min(1e-12)[:, None, None]
    return total / len(chosen)

"""One saliency map from the chosen method and, if wanted, the classifier's activation map."""

from __future__ import annotations

import torch
from scipy import ndimage

from app_cdm.config import SaliencyMode, SaliencySettings
from app_cdm.saliency.base import SaliencyInputs, SaliencyMethod, SaliencyModel
from app_cdm.saliency.cam import layer_cam, layer_cam_saliency
from app_cdm.saliency.cg_cdm import cg_cdm_saliency
from app_cdm.saliency.cg_diff import cg_diff_saliency
from app_cdm.saliency.derivative import derivative_saliency
from app_cdm.saliency.forward_process import forward_process_saliency
from app_cdm.saliency.grad_cam import grad_cam_saliency
from app_cdm.saliency.gradient import gradient_saliency
from app_cdm.saliency.intensity import intensity_saliency
from app_cdm.saliency.parallel import parallel_saliency
from app_cdm.saliency.reference import reference_saliency

METHODS: dict[SaliencyMode, SaliencyMethod] = {
    "parallel": parallel_saliency,
    "reference": reference_saliency,
    "cg_cdm": cg_cdm_saliency,
    "derivative": derivative_saliency,
    "cg_diff": cg_diff_saliency,
    "forward_process": forward_process_saliency,
    "gradient": gradient_saliency,
    "grad_cam": grad_cam_saliency,
    "layer_cam": layer_cam_saliency,
    "intensity": intensity_saliency,
}


def saliency_maps(model: SaliencyModel, inputs: SaliencyInputs, settings: SaliencySettings) -> torch.Tensor:
    """Saliency of S slices for one class, scaled per slice to [0, 1].

    The map of the mode is smoothed, set to zero outside the body and below zero, and scaled to unit peak; the LayerCAM,
    scaled likewise, is added with `cam_weight`, because the two make different errors.

    Args:
        model: the networks.
        inputs: the slices and the class.
        settings: mode and every number.

    Returns:
        `(S, H, W)` float32 in [0, 1].
    """
    if not inputs.slice_indices:
        return torch.zeros(0, *inputs.slices.shape[2:])
    with torch.no_grad():
        maps = METHODS[settings.mode](model, inputs, settings)
    maps = smooth(maps, settings.smoothing_px)
    body = inputs.body
    maps = unit_peak(maps.clamp_min(0) * body)
    if settings.cam_weight > 0:
        maps = maps + settings.cam_weight * unit_peak(layer_cam(model, inputs, settings.batch_images) * body)
    return unit_peak(maps)


def smooth(maps: torch.Tensor, smoothing_px: float) -> torch.Tensor:
    """In-plane Gaussian smoothing of `(S, H, W)` maps."""
    return torch.from_numpy(ndimage.gaussian_filter(maps.numpy(), sigma=(0, smoothing_px, smoothing_px))) if smoothing_px > 0 else maps


def unit_peak(maps: torch.Tensor) -> torch.Tensor:
    """Scales each `(H, W)` map of `(S, H, W)` so that its largest value is 1; an empty map stays 0."""
    return maps / maps.flatten(1).amax(dim=1).clamp_min(1e-12)[:, None, None]

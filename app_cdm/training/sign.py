"""Whether a target is brighter or darker than what would be there without it, found from tags alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from app_cdm.cldf.votes import inputs_of
from app_cdm.config import SaliencySettings, Sign
from app_cdm.data.dataset import TaggedSlices
from app_cdm.data.tags import PRESENT
from app_cdm.saliency.base import SaliencyModel
from app_cdm.saliency.cam import layer_cam
from app_cdm.saliency.parallel import level_differences

MIN_SLICES, MAX_SLICES = 8, 16
CLEAR = 2.0  # standard errors below zero


def choose_sign(model: SaliencyModel, data: TaggedSlices, settings: SaliencySettings) -> tuple[Sign, dict[str, Any]]:
    """The sign of the difference x0(present) - x0(absent) where the classifier sees the target.

    Up to sixteen slices a class that are tagged present, evenly spread. In each one the difference, a mean over noise levels, is averaged
    with the weights of LayerCAM, and its mean over the body is subtracted. Where the mean over all slices, eight at least, is clearly below
    zero (two standard errors), the target is dark, of all classes; else the sign stays what it was.

    Args:
        model: the trained diffusion model and classifier.
        data: tagged slices of training.
        settings: noise levels, draws, seed and batch size.

    Returns:
        The sign, and for the record from how many slices, and the share of those of each class whose target looks darker.
    """
    found: dict[str, torch.Tensor] = {}
    for class_index, name in enumerate(data.class_names):
        index = torch.nonzero(data.states[:, class_index] == PRESENT)[:, 0]
        if len(index):
            chosen = index[torch.linspace(0, len(index) - 1, min(MAX_SLICES, len(index))).round().long()]
            found[name] = _contrast(model, data, chosen, class_index, settings)
    values = torch.cat([torch.zeros(0), *found.values()])
    is_dark = len(values) >= MIN_SLICES and bool(values.mean() < -CLEAR * values.std() / len(values) ** 0.5)
    sign: Sign = "negative" if is_dark else settings.sign
    darker = {name: round(float((own < 0).float().mean()), 3) for name, own in found.items()}
    return sign, {"chosen": sign, "num_slices": len(values), "share_of_slices_with_a_darker_target": darker}


def rests_on_few(record: Mapping[str, Any]) -> bool:
    """Whether the sign of a model was left as it was for want of slices, as its training record says."""
    return bool(record.get("sign", {}).get("num_slices", MIN_SLICES) < MIN_SLICES)


def _contrast(model: SaliencyModel, data: TaggedSlices, index: torch.Tensor, class_index: int, settings: SaliencySettings) -> torch.Tensor:
    """`(S,)` weighted mean of the difference where the classifier looks, less its mean over the body, in standard deviations."""
    inputs = inputs_of(data, index, class_index)
    body = inputs.body
    with torch.no_grad():
        levels = level_differences(model, inputs, settings)
    levels = levels / levels.flatten(2).std(dim=2).clamp_min(1e-12)[..., None, None]
    difference, weight = levels.mean(dim=0), layer_cam(model, inputs, settings.batch_images).clamp_min(0) * body
    inside = (difference * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp_min(1e-12)
    overall = (difference * body).flatten(1).sum(1) / body.flatten(1).sum(1).clamp_min(1)
    return inside - overall

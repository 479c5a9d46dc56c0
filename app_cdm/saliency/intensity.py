"""The slice itself as a map: the baseline without any network."""

from __future__ import annotations

import torch

from app_cdm.config import SaliencySettings
from app_cdm.saliency.base import SaliencyInputs, SaliencyModel


def intensity_saliency(model: SaliencyModel, inputs: SaliencyInputs, settings: SaliencySettings) -> torch.Tensor:
    """Intensity scaled from [-1, 1] to [0, 1]; with the mask stage this is Otsu's threshold and the largest component.

    Args:
        model: ignored.
        inputs: S slices.
        settings: `sign`: `negative` inverts the intensity, `magnitude` gives its distance from the middle of the range.

    Returns:
        `(S, H, W)` float32 in [0, 1].
    """
    slices = inputs.slices[:, 0].float().cpu()
    return {"positive": (1 + slices) / 2, "negative": (1 - slices) / 2, "magnitude": slices.abs()}[settings.sign]

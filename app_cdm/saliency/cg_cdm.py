"""CG-CDM: the published algorithm with classifier guidance."""

from __future__ import annotations

import torch

from app_cdm.config import SaliencySettings
from app_cdm.saliency.base import SaliencyInputs, SaliencyModel
from app_cdm.saliency.reference import reference_saliency


def cg_cdm_saliency(model: SaliencyModel, inputs: SaliencyInputs, settings: SaliencySettings) -> torch.Tensor:
    """`reference_saliency` guided with `cg_cdm_guidance_scale` (CG-CDM of Hu et al. 2023; s = 10 there).

    A mode with a scale of its own, so that calibrating the baseline cannot switch on the guidance of other modes.

    Args:
        model: the networks.
        inputs: S slices and the class.
        settings: as for `reference_saliency`, but for `guidance_scale`.

    Returns:
        `(S, H, W)` float32, large where the target is.
    """
    return reference_saliency(model, inputs, settings.replace(guidance_scale=settings.cg_cdm_guidance_scale))

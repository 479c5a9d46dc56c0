"""CG-CDM as a mode: Algorithm 1 with a guidance scale of its own."""

from __future__ import annotations

import torch

from app_cdm.config import SaliencySettings
from app_cdm.saliency.cg_cdm import cg_cdm_saliency
from app_cdm.saliency.reference import reference_saliency
from tests.tiny_networks import tiny_inputs, tiny_saliency_model


def test_is_the_guided_reference_whatever_the_scale_of_other_modes() -> None:
    model, inputs = tiny_saliency_model(), tiny_inputs(2)
    model.classifier.conv_out.weight.mul_(20)
    settings = SaliencySettings(mode="cg_cdm", num_denoising_steps=3, cg_cdm_guidance_scale=30.0)
    with torch.no_grad():
        found = cg_cdm_saliency(model, inputs, settings.replace(guidance_scale=7.0))
        assert model.counter.images == 2 * 3 * 2
        assert torch.equal(found, reference_saliency(model, inputs, settings.replace(guidance_scale=30.0)))
        unguided = reference_saliency(model, inputs, settings)
    assert (found - unguided).abs().max() > 0.05 * unguided.abs().max()

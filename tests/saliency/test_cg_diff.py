"""CG-Diff: against its formula, the number of evaluations, and the direction of its guidance."""

from __future__ import annotations

import pytest
import torch

from app_cdm.config import SaliencySettings
from app_cdm.diffusion.process import find_timestep
from app_cdm.saliency.cg_diff import NOISE_STREAM, cg_diff_saliency
from tests.saliency.counting import batch_sizes
from tests.saliency.oracle import cg_diff, slice_oracles
from tests.tiny_networks import tiny_inputs, tiny_saliency_model

FEW = SaliencySettings(mode="cg_diff", cg_diff_num_steps=6, cg_diff_guidance_scale=20.0)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon"])
@pytest.mark.parametrize("change", [{}, {"cg_diff_guidance_scale": 0.0}, {"cg_diff_noise_level": 0.3, "seed": 9}, {"cg_diff_num_steps": 1}])
def test_equals_the_formula_slice_by_slice(prediction_type: str, change: dict[str, float]) -> None:
    model = tiny_saliency_model(prediction_type=prediction_type)
    model.classifier.conv_out.weight.mul_(20)
    inputs, settings = tiny_inputs(2), FEW.replace(**change)
    with torch.no_grad():
        found = cg_diff_saliency(model, inputs, settings)
    for saliency, oracle in zip(found, slice_oracles(model, inputs), strict=True):
        expected = cg_diff(oracle, settings, NOISE_STREAM)
        torch.testing.assert_close(saliency.double(), expected, atol=1e-3 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("steps", [1, 7, 36, 100])
def test_one_evaluation_a_step(steps: int) -> None:
    model = tiny_saliency_model()
    with torch.no_grad(), batch_sizes(model.unet) as sizes:
        cg_diff_saliency(model, tiny_inputs(2), FEW.replace(cg_diff_num_steps=steps))
    assert model.counter.images == sum(sizes) == 2 * steps


def test_as_many_steps_as_the_noise_level_has_and_no_more() -> None:
    model, inputs = tiny_saliency_model(), tiny_inputs(1)
    low = FEW.replace(cg_diff_noise_level=0.05)
    first = find_timestep(model.scheduler, 0.05)
    with torch.no_grad():
        assert cg_diff_saliency(model, inputs, low.replace(cg_diff_num_steps=first)).isfinite().all()
    with pytest.raises(ValueError, match=rf"cg_diff_num_steps = {first + 1}: noise level 0\.05 is only {first} steps"):
        cg_diff_saliency(model, inputs, low.replace(cg_diff_num_steps=first + 1))


def test_map_is_a_magnitude_and_guidance_and_class_matter() -> None:
    model, inputs = tiny_saliency_model(), tiny_inputs()
    model.classifier.conv_out.weight.mul_(20)
    with torch.no_grad():
        guided = cg_diff_saliency(model, inputs, FEW)
        plain = cg_diff_saliency(model, inputs, FEW.replace(cg_diff_guidance_scale=0.0))
        other = cg_diff_saliency(model, tiny_inputs(class_index=0), FEW)
        assert torch.equal(guided, cg_diff_saliency(model, inputs, FEW.replace(sign="negative")))
        # Without guidance the class plays no part: the condition is null.
        torch.testing.assert_close(plain, cg_diff_saliency(model, tiny_inputs(class_index=0), FEW.replace(cg_diff_guidance_scale=0.0)))
    assert guided.min() >= 0
    assert (guided - plain).abs().max() > 1e-3
    assert (guided - other).abs().max() > 1e-3

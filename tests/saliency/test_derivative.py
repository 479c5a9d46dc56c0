"""The exact derivative with respect to the condition, against central finite differences in float64."""

from __future__ import annotations

import pytest
import torch

from app_cdm.config import SaliencySettings
from app_cdm.saliency.derivative import derivative_saliency, directional_derivative
from app_cdm.saliency.parallel import parallel_saliency
from tests.saliency.counting import batch_sizes
from tests.saliency.oracle import slice_oracles
from tests.tiny_networks import as_double, tiny_inputs, tiny_saliency_model


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon"])
@pytest.mark.parametrize("timestep", [50, 420, 900])
def test_equals_a_central_difference(prediction_type: str, timestep: int) -> None:
    model, inputs = tiny_saliency_model(prediction_type=prediction_type, dtype=torch.double), as_double(tiny_inputs(2))
    oracles = slice_oracles(model, inputs)
    samples = torch.cat([oracle.noisy(timestep, 0, 0) for oracle in oracles])
    with torch.no_grad():
        found = directional_derivative(model, inputs, samples, torch.full((2,), timestep))[:, 0].double()
    step = 1e-4
    for saliency, oracle, x in zip(found, oracles, samples[:, None], strict=True):
        clean = [oracle.x0_of(x, oracle.noise_prediction(x, timestep, oracle.embedding(1.0 + side * step)), timestep) for side in (1, -1)]
        expected = (clean[0] - clean[1])[0, 0] / (2 * step)
        assert expected.abs().max() > 1e-4
        torch.testing.assert_close(saliency, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-5)


def test_counts_two_evaluations_an_image() -> None:
    model = tiny_saliency_model()
    settings = SaliencySettings(mode="derivative", noise_levels=(0.5, 0.7), num_draws=2, flip=True)
    with torch.no_grad(), batch_sizes(model.unet) as sizes:
        derivative_saliency(model, tiny_inputs(), settings)
    assert model.counter.images == 2 * sum(sizes) == 3 * 2 * 2 * 2 * 2


def test_difference_of_nearby_conditions_looks_like_the_derivative() -> None:
    model, inputs = tiny_saliency_model(), tiny_inputs()
    settings = SaliencySettings(noise_levels=(0.6,), num_draws=2, flip=True)
    with torch.no_grad():
        model.condition_embedding.class_vectors.mul_(0.003)  # present and absent close together
        difference, derivative = parallel_saliency(model, inputs, settings), derivative_saliency(model, inputs, settings)
    correlation = torch.corrcoef(torch.stack([difference.flatten(), derivative.flatten()]))[0, 1]
    assert correlation > 0.99  # same sign, same map


def test_leaves_the_networks_as_they_were() -> None:
    model, inputs = tiny_saliency_model(), tiny_inputs(1)
    timesteps, embedding = torch.tensor([300]), torch.randn(1, 64)
    with torch.no_grad():
        before = model.model_output(inputs.slices, timesteps, embedding)
        derivative_saliency(model, inputs, SaliencySettings(noise_levels=(0.5,)))
        assert torch.equal(model.model_output(inputs.slices, timesteps, embedding), before)
    assert not any(module._forward_hooks for module in model.unet.modules())
    assert not any(parameter.requires_grad for parameter in model.unet.parameters())

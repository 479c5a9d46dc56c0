"""AnoFPDM's map: against its formula, its end per slice, and the number of evaluations."""

from __future__ import annotations

import pytest
import torch

from app_cdm.config import SaliencySettings, SettingsError
from app_cdm.diffusion.process import find_timestep
from app_cdm.saliency.forward_process import NOISE_STREAM, forward_process_saliency
from tests.saliency.counting import batch_sizes, timesteps_seen
from tests.saliency.oracle import forward_process, slice_oracles
from tests.tiny_networks import tiny_inputs, tiny_saliency_model

LEVELS = (0.2, 0.4, 0.6, 0.8)
SETTINGS = SaliencySettings(mode="forward_process", forward_process_noise_levels=LEVELS)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon"])
@pytest.mark.parametrize("change", [{}, {"num_draws": 1, "seed": 9}, {"forward_process_noise_levels": (0.7,)}])
def test_equals_the_formula_slice_by_slice(prediction_type: str, change: dict[str, float]) -> None:
    model, settings = tiny_saliency_model(prediction_type=prediction_type), SETTINGS.replace(**change)
    for class_index in (0, 1):
        inputs = tiny_inputs(3, class_index=class_index)
        with torch.no_grad():
            found = forward_process_saliency(model, inputs, settings)
        assert found.dtype == torch.float32
        for saliency, oracle in zip(found, slice_oracles(model, inputs), strict=True):
            expected, _ = forward_process(oracle, settings, NOISE_STREAM)
            torch.testing.assert_close(saliency.double(), expected, atol=1e-3 * float(expected.max()), rtol=0)


def test_ends_where_the_guided_prediction_differs_most_from_the_null_one_slice_by_slice() -> None:
    model, inputs = tiny_saliency_model(), tiny_inputs(6, seed=0)
    # Close together, so that the answer of the network and not the noise level decides where a slice ends.
    settings = SETTINGS.replace(forward_process_noise_levels=(0.9, 0.97, 0.98, 0.99, 0.995), num_draws=1)
    with torch.no_grad():
        found = forward_process_saliency(model, inputs, settings)
    ends = set()
    for saliency, oracle in zip(found, slice_oracles(model, inputs), strict=True):
        expected, end = forward_process(oracle, settings, NOISE_STREAM)
        ends.add(end)
        torch.testing.assert_close(saliency.double(), expected, atol=1e-3 * float(expected.max()), rtol=0)
    assert ends == {3, 4}


def test_two_evaluations_a_level_and_draw() -> None:
    model, settings = tiny_saliency_model(), SETTINGS.replace(num_draws=3, batch_images=4)
    with torch.no_grad(), batch_sizes(model.unet) as sizes, timesteps_seen(model.unet) as seen:
        forward_process_saliency(model, tiny_inputs(3), settings)
    assert model.counter.images == sum(sizes) == 3 * 2 * 3 * len(LEVELS)
    assert max(sizes) == 4
    assert {timestep for timesteps in seen for timestep in timesteps} == {find_timestep(model.scheduler, level) for level in LEVELS}


def test_error_of_a_network_that_predicts_no_noise_is_the_noise() -> None:
    model = tiny_saliency_model(prediction_type="epsilon")
    model.unet.conv_out.weight.zero_()
    model.unet.conv_out.bias.zero_()
    inputs = tiny_inputs(2)
    settings = SETTINGS.replace(num_draws=1, forward_process_noise_levels=(0.5,))
    with torch.no_grad():
        found = forward_process_saliency(model, inputs, settings)
    for saliency, oracle in zip(found, slice_oracles(model, inputs), strict=True):
        t = oracle.timestep(0.5)
        leftover = oracle.noisy(t, NOISE_STREAM, 0) / oracle.bar(t) ** 0.5 - oracle.x0
        torch.testing.assert_close(saliency.double(), leftover[0, 0] ** 2, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("levels", [(), (0.5, 0.4), (0.5, 0.5)])
def test_levels_must_ascend(levels: tuple[float, ...]) -> None:
    with pytest.raises(SettingsError, match=r"forward_process_noise_levels = .*ascending"):
        SaliencySettings(forward_process_noise_levels=levels)

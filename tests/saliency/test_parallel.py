"""Parallel CDM: against the formula slice by slice, its number of evaluations, mirror symmetry and batch limits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from app_cdm.config import SaliencySettings
from app_cdm.diffusion.process import find_timestep, slice_generator
from app_cdm.saliency.base import SaliencyInputs
from app_cdm.saliency.parallel import parallel_saliency
from tests.saliency.counting import batch_sizes
from tests.saliency.oracle import mean_over_levels, slice_oracles
from tests.tiny_networks import as_double, tiny_inputs, tiny_saliency_model

PLAIN = SaliencySettings(noise_levels=(0.6,), num_draws=1, flip=False)


@pytest.mark.parametrize(
    ("change", "a_slice"),
    [({}, 2), ({"flip": True}, 4), ({"num_draws": 3}, 6), ({"noise_levels": (0.3, 0.6, 0.9), "num_draws": 2, "flip": True}, 24)],
)
def test_number_of_evaluations(change: dict[str, Any], a_slice: int) -> None:
    model = tiny_saliency_model()
    with torch.no_grad(), batch_sizes(model.unet) as sizes:
        parallel_saliency(model, tiny_inputs(3), PLAIN.replace(**change))
    assert model.counter.images == sum(sizes) == 3 * a_slice


def test_one_level_one_draw_by_hand() -> None:
    model, inputs = tiny_saliency_model(num_classes=1), tiny_inputs(1, class_index=0, first_index=7)
    timestep = torch.tensor([find_timestep(model.scheduler, 0.6)])
    noise = torch.randn(1, 16, 16, generator=slice_generator(0, 7, 0))[None]
    samples = model.scheduler.add_noise(inputs.slices, noise, timestep)
    with torch.no_grad():
        found = parallel_saliency(model, inputs, PLAIN)[0]
        absent, present = (
            model.original_samples(samples, timestep, model.embed(torch.eye(3)[kind][None, None], inputs.positions))[0, 0]
            for kind in (0, 1)
        )
    difference = present - absent
    torch.testing.assert_close(found, difference / difference.std(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon"])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"flip": True, "seed": 3},
        {"num_draws": 2, "noise_levels": (0.35, 0.8)},
        {"num_draws": 3, "noise_levels": (0.2, 0.9), "flip": True, "batch_images": 4},
        {"guidance_scale": 40.0, "flip": True},
    ],
)
def test_equals_the_formula_slice_by_slice(prediction_type: str, change: dict[str, Any]) -> None:
    model = tiny_saliency_model(prediction_type=prediction_type, dtype=torch.double)
    model.classifier.conv_out.weight.mul_(20)
    inputs, settings = as_double(tiny_inputs()), PLAIN.replace(**change)
    with torch.no_grad():
        found = parallel_saliency(model, inputs, settings)
    for saliency, oracle in zip(found, slice_oracles(model, inputs), strict=True):
        torch.testing.assert_close(saliency.double(), mean_over_levels(oracle, settings), atol=5e-4, rtol=1e-3)


def test_guidance_changes_the_map() -> None:
    model, inputs = tiny_saliency_model(), tiny_inputs()
    model.classifier.conv_out.weight.mul_(20)
    with torch.no_grad():
        plain = parallel_saliency(model, inputs, PLAIN)
        guided = parallel_saliency(model, inputs, PLAIN.replace(guidance_scale=40.0))
    assert (plain - guided).abs().max() > 0.1


def test_map_of_a_mirrored_slice_is_the_mirrored_map() -> None:
    model, inputs = tiny_saliency_model(), tiny_inputs()
    mirrored = SaliencyInputs(inputs.slices.flip(-1), inputs.positions, inputs.slice_indices, inputs.class_index)
    settings = PLAIN.replace(flip=True, num_draws=2, noise_levels=(0.4, 0.7))
    with torch.no_grad():
        # Both see the slice and its mirror image under the same noise, so only the order of a sum differs.
        torch.testing.assert_close(
            parallel_saliency(model, mirrored, settings), parallel_saliency(model, inputs, settings).flip(-1), atol=1e-3, rtol=1e-3
        )
        without = settings.replace(flip=False)
        assert (parallel_saliency(model, mirrored, without) - parallel_saliency(model, inputs, without).flip(-1)).abs().max() > 0.1


@pytest.mark.parametrize("guidance_scale", [0.0, 5.0])
def test_no_call_is_larger_than_batch_images(guidance_scale: float) -> None:
    model, inputs = tiny_saliency_model(), tiny_inputs(3)
    many = SaliencySettings(noise_levels=(0.5,), num_draws=5, flip=True, guidance_scale=guidance_scale)
    with torch.no_grad():
        expected = parallel_saliency(model, inputs, many.replace(batch_images=4096))
        for limit in (3, 8, 40):
            with batch_sizes(model.unet) as sizes, batch_sizes(model.classifier) as classified:
                found = parallel_saliency(model, inputs, many.replace(batch_images=limit))
            assert max(sizes) <= limit
            assert max(classified, default=0) <= limit
            assert sum(sizes) == 3 * 2 * 5 * 2
            torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_every_level_weighs_the_same() -> None:
    model, inputs = tiny_saliency_model(), tiny_inputs(2)
    with torch.no_grad():
        single = [parallel_saliency(model, inputs, PLAIN.replace(noise_levels=(level,))) for level in (0.5, 0.9)]
        # The second level of two draws from stream 1, as the second draw of a single level does.
        both = parallel_saliency(model, inputs, PLAIN.replace(noise_levels=(0.5, 0.9)))
    for saliency in single:
        torch.testing.assert_close(saliency.flatten(1).std(dim=1), torch.ones(2), atol=1e-4, rtol=0)
    torch.testing.assert_close((2 * both - single[0]).flatten(1).std(dim=1), torch.ones(2), atol=1e-3, rtol=0)


def test_sign_applies_to_each_level() -> None:
    model, inputs = tiny_saliency_model(), tiny_inputs(2)
    levels = PLAIN.replace(noise_levels=(0.4, 0.8))
    with torch.no_grad():
        maps = {sign: parallel_saliency(model, inputs, levels.replace(sign=sign)) for sign in ("positive", "negative", "magnitude")}
    assert torch.equal(maps["positive"], -maps["negative"])
    assert (maps["magnitude"] >= maps["positive"].abs() - 1e-6).all()
    assert maps["magnitude"].min() >= 0

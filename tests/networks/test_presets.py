"""Network sizes: they build, the published one is the published one, and the condition is added to the timestep."""

from __future__ import annotations

import pytest
import torch

from app_cdm.networks.presets import (
    PRESETS,
    NetworkSettings,
    build_classifier,
    build_condition_embedding,
    build_scheduler,
    build_unet,
    sizes_of,
)


def num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_preset_builds(name: str) -> None:
    settings = PRESETS[name]
    with torch.device("meta"):  # shapes alone: the published network has 150 million parameters
        unet, condition, classifier = build_unet(settings), build_condition_embedding(settings, 2), build_classifier(settings, 2)
        side, channels = settings.image_size // settings.patch_size, settings.patch_size**2
        embedding = condition(torch.zeros(2, 2, 3), torch.zeros(2))
        output = unet(torch.zeros(2, channels, side, side), torch.zeros(2, dtype=torch.long), embedding).sample
        logits = classifier(torch.zeros(2, 1, settings.image_size, settings.image_size), torch.zeros(2, dtype=torch.long))
    assert output.shape == (2, channels, side, side)
    assert logits.shape == (2, 2)
    assert unet.config.sample_size == side
    assert sizes_of(unet, classifier) == settings


def test_paper_preset_has_about_the_published_size() -> None:
    with torch.device("meta"):
        count = num_parameters(build_unet(PRESETS["paper"]))
    assert 1.2e8 < count < 1.8e8  # 150 million


def test_tiny_preset_fits_the_published_model_folder() -> None:
    with torch.device("meta"):
        modules = [build_unet(PRESETS["tiny"]), build_condition_embedding(PRESETS["tiny"], 1), build_classifier(PRESETS["tiny"], 1)]
    assert sum(map(num_parameters, modules)) * 2 < 25e6  # bytes in float16


@pytest.mark.parametrize("levels", [0, 1, 2, 3])
def test_attention_stands_at_the_deepest_levels(levels: int) -> None:
    unet = build_unet(NetworkSettings(32, 2, (32, 32, 32), 1, levels, 8, (16,)))
    attends = [type(block).__name__.startswith("Attn") for block in unet.down_blocks]
    assert attends == [False] * (3 - levels) + [True] * levels
    assert [type(block).__name__.startswith("Attn") for block in unet.up_blocks] == attends[::-1]


def test_condition_is_added_to_the_timestep_embedding() -> None:
    torch.manual_seed(0)
    unet = build_unet(NetworkSettings(16, 2, (16, 32), 1, 1, 8, (16,))).eval().requires_grad_(False)
    samples, condition = torch.randn(1, 4, 8, 8), torch.randn(1, 64)

    def embedded(timestep: int) -> torch.Tensor:
        return unet.time_embedding(unet.time_proj(torch.tensor([timestep])))

    at_100 = unet(samples, torch.tensor([100]), condition).sample
    at_700 = unet(samples, torch.tensor([700]), condition + embedded(100) - embedded(700)).sample
    torch.testing.assert_close(at_100, at_700, atol=1e-5, rtol=1e-4)
    assert (unet(samples, torch.tensor([700]), condition).sample - at_100).abs().max() > 1e-3


def test_scheduler_predicts_velocity_and_never_clips() -> None:
    config = build_scheduler().config
    assert (config.prediction_type, config.num_train_timesteps, config.beta_schedule) == ("v_prediction", 1000, "squaredcos_cap_v2")
    assert not config.clip_sample
    assert not config.thresholding

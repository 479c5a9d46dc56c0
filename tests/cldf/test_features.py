"""Features: against whole forward passes slice by slice and view by view, the early end of the pass, and their settings."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from app_cdm.cldf.features import MAX_EVALUATIONS, FeatureSettings, blocks_of, extract_features
from app_cdm.config import SettingsError
from app_cdm.diffusion.process import find_timestep, slice_generator
from app_cdm.networks.presets import PRESETS, build_unet
from app_cdm.saliency.base import SaliencyInputs, SaliencyModel
from tests.saliency.counting import batch_sizes
from tests.tiny_networks import tiny_inputs, tiny_saliency_model

BOTH = (0, 1)


def whole_pass(
    model: SaliencyModel, inputs: SaliencyInputs, row: int, level: float, presence: float | None, seed: int
) -> list[torch.Tensor]:
    """`(c, h, w)` of both decoder blocks of one slice: what enters the upsampling, and what leaves the last block."""
    timestep = find_timestep(model.scheduler, level)
    bar = float(model.scheduler.alphas_cumprod[timestep])
    noise = torch.randn(1, 16, 16, generator=slice_generator(seed, inputs.slice_indices[row], 0))[None]
    sample = math.sqrt(bar) * inputs.slices[row : row + 1] + math.sqrt(1 - bar) * noise
    weights = torch.zeros(1, model.num_classes, 3)
    weights[:, :, 2] = 1
    if presence is not None:
        weights[0, inputs.class_index] = torch.tensor([1 - presence, presence, 0])
    seen: list[torch.Tensor] = []
    layers = (model.unet.up_blocks[0].upsamplers[0], model.unet.conv_norm_out)
    hooks = [layer.register_forward_pre_hook(lambda _module, entering: seen.append(entering[0][0])) for layer in layers]
    with torch.no_grad():
        patches = torch.nn.functional.pixel_unshuffle(sample, model.patch_size)
        model.unet(patches, torch.tensor([timestep]), model.condition_embedding(weights, inputs.positions[row : row + 1]))
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize(
    "settings",
    [
        FeatureSettings((0.3,), (), BOTH),
        FeatureSettings((0.15, 0.6, 0.3), (), BOTH, seed=5),
        FeatureSettings((), (0.4,), BOTH),
        FeatureSettings((0.2,), (0.7,), BOTH, seed=1),
    ],
)
@pytest.mark.parametrize("class_index", [0, 1])
def test_equals_whole_passes_slice_by_slice(settings: FeatureSettings, class_index: int) -> None:
    model, inputs = tiny_saliency_model(), tiny_inputs(3, class_index)
    found = extract_features(model, inputs, settings)
    assert [tuple(block.shape[2:]) for block in found] == [(4, 4), (8, 8)]
    for row in range(3):
        null = [whole_pass(model, inputs, row, level, None, settings.seed) for level in settings.null_levels]
        pairs = [[whole_pass(model, inputs, row, level, p, settings.seed) for p in (1.0, 0.0)] for level in settings.contrast_levels]
        for block in BOTH:
            expected = [view[block] for view in null] + [present[block] - absent[block] for present, absent in pairs]
            torch.testing.assert_close(found[block][row], torch.cat(expected), atol=2e-5, rtol=1e-4)
            assert float(found[block][row].std()) > 0.01, "features that are all but zero would prove nothing"


def test_a_block_is_the_same_whatever_other_blocks_are_asked_for() -> None:
    model, inputs = tiny_saliency_model(), tiny_inputs()
    both = extract_features(model, inputs, FeatureSettings((0.3, 0.5), (), BOTH))
    for block in BOTH:
        assert torch.equal(extract_features(model, inputs, FeatureSettings((0.3, 0.5), (), (block,)))[0], both[block])


@pytest.mark.parametrize(("blocks", "second_runs"), [((0,), 0), ((1,), 1), ((0, 1), 1)])
def test_pass_ends_with_the_last_block_asked_for(blocks: tuple[int, ...], second_runs: int) -> None:
    model = tiny_saliency_model()
    settings = FeatureSettings((0.3,), (0.5,), blocks)
    unet = model.unet
    with (
        batch_sizes(unet.up_blocks[0].resnets[0]) as first,
        batch_sizes(unet.up_blocks[0].upsamplers[0]) as upsampled,
        batch_sizes(unet.up_blocks[1].resnets[0]) as second,
        batch_sizes(unet.conv_out) as last,
    ):
        extract_features(model, tiny_inputs(2), settings)
    assert first == [2 * 3], "all views of all slices in one call"
    assert second == upsampled == [6] * second_runs
    assert last == []
    assert model.counter.images == 2 * settings.num_evaluations == 6


def test_batch_mates_and_order_change_nothing() -> None:
    model, inputs, settings = tiny_saliency_model(), tiny_inputs(4), FeatureSettings((0.2,), (0.5,), BOTH)
    together = extract_features(model, inputs, settings)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = SaliencyInputs(inputs.slices[order], inputs.positions[order], tuple(inputs.slice_indices[i] for i in order), 1)
    for whole, mixed in zip(together, extract_features(model, shuffled, settings), strict=True):
        torch.testing.assert_close(mixed, whole[order], atol=1e-5, rtol=1e-4)
    for row in range(4):
        for whole, alone in zip(together, extract_features(model, inputs.select(row, row + 1), settings), strict=True):
            torch.testing.assert_close(alone[0], whole[row], atol=1e-5, rtol=1e-4)


def test_class_matters_for_contrast_alone_and_the_seed_for_all() -> None:
    model = tiny_saliency_model()
    for settings, matters in ((FeatureSettings((0.4,), (), (1,)), False), (FeatureSettings((), (0.4,), (1,)), True)):
        one, other = (extract_features(model, tiny_inputs(class_index=c), settings)[0] for c in (0, 1))
        assert (one - other).abs().max() > 0.01 if matters else torch.equal(one, other)
        reseeded = extract_features(model, tiny_inputs(class_index=0), settings.replace(seed=1))[0]
        assert (one - reseeded).abs().max() > 0.01


def test_no_gradient_and_no_hook_is_left_behind() -> None:
    model, inputs = tiny_saliency_model(), tiny_inputs()
    model.unet.requires_grad_(True)
    assert not extract_features(model, inputs, FeatureSettings((0.3,), (), BOTH))[0].requires_grad
    odd = SaliencyInputs(inputs.slices[..., :15], inputs.positions, inputs.slice_indices, 0)
    with pytest.raises(RuntimeError):  # no whole number of patches
        extract_features(model, odd, FeatureSettings((0.3,), (), BOTH))
    assert not any(module._forward_hooks for module in model.unet.modules())
    with batch_sizes(model.unet.conv_out) as sizes, torch.no_grad():
        model.model_output(inputs.slices, torch.full((3,), 300), torch.zeros(3, 64))
    assert sizes == [3], "passes of others run to their end"


@pytest.mark.parametrize(("preset", "blocks"), [("tiny", (0, 1, 2)), ("base", (1, 2, 3)), ("paper", (2, 3, 4))])
def test_features_are_those_of_the_last_three_blocks_before_pixels(preset: str, blocks: tuple[int, ...]) -> None:
    network = PRESETS[preset]
    narrow = network.replace(block_out_channels=(32,) * len(network.block_out_channels), attention_levels=0)
    unet = build_unet(narrow)
    assert blocks_of(unet, narrow.patch_size) == blocks
    assert blocks_of(unet, narrow.patch_size, (0, 2)) == (0, 2)


def test_block_that_the_network_lacks() -> None:
    with pytest.raises(ValueError, match=r"FeatureSettings\.blocks = \(0, 1, 2\): this U-Net has 2 decoder blocks"):
        extract_features(tiny_saliency_model(), tiny_inputs(), FeatureSettings((0.3,), (), (0, 1, 2)))


@examples(max_examples=40)
@given(st.lists(st.floats(0.02, 0.995), max_size=5), st.lists(st.floats(0.02, 0.995), max_size=4))
def test_one_to_three_evaluations_a_slice(null: list[float], contrast: list[float]) -> None:
    needed = len(null) + 2 * len(contrast)
    if 1 <= needed <= 3:
        settings = FeatureSettings(tuple(null), tuple(contrast))
        assert settings.num_evaluations == needed
        assert FeatureSettings.from_dict(settings.to_dict()) == settings
    else:
        with pytest.raises(SettingsError, match=rf"need {needed} evaluations a slice .* must be 1 to 3"):
            FeatureSettings(tuple(null), tuple(contrast))
    assert MAX_EVALUATIONS == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": (1, 0)}, "ascending order"),
        ({"blocks": (1, 1)}, "distinct"),
        ({"blocks": (-1,)}, r"blocks = -1: must lie in \[0, 16\]"),
        ({"null_levels": (0.01,)}, "null_levels = 0.01: must lie in"),
        ({"contrast_levels": (1.0,), "null_levels": ()}, "contrast_levels = 1.0: must lie in"),
        ({"seed": -1}, "seed = -1: must lie in"),
    ],
)
def test_settings_out_of_range(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        FeatureSettings().replace(**change)

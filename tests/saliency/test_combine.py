"""Every mode through the one entrance: range, independence of batch mates and order, seeds, and what each knob does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from app_cdm.config import SaliencySettings
from app_cdm.saliency.base import SaliencyInputs, SaliencyModel, draw_noise
from app_cdm.saliency.cam import layer_cam
from app_cdm.saliency.combine import METHODS, saliency_maps, unit_peak
from tests.saliency.counting import batch_sizes
from tests.tiny_networks import tiny_inputs, tiny_saliency_model

MODES = sorted(METHODS)
WITHOUT_UNET = ("grad_cam", "gradient", "intensity", "layer_cam")
WITHOUT_NOISE = ("grad_cam", "intensity", "layer_cam")
GUIDED = ("parallel", "reference")  # by `guidance_scale`
FAST = SaliencySettings(noise_levels=(0.4, 0.7), num_denoising_steps=3, cg_diff_num_steps=4)


def lively_model() -> SaliencyModel:
    model = tiny_saliency_model()
    model.classifier.conv_out.weight.mul_(20)
    return model


def taken(inputs: SaliencyInputs, order: list[int]) -> SaliencyInputs:
    return SaliencyInputs(inputs.slices[order], inputs.positions[order], tuple(inputs.slice_indices[i] for i in order), inputs.class_index)


@pytest.mark.parametrize("mode", MODES)
def test_range_shape_and_background(mode: Any) -> None:
    inputs = tiny_inputs(4)
    model = lively_model()
    with batch_sizes(model.unet) as sizes:
        maps = saliency_maps(model, inputs, FAST.replace(mode=mode))
    assert model.counter.images == sum(sizes) * (2 if mode == "derivative" else 1)  # calls of the U-Net alone count
    assert (not sizes) == (mode in WITHOUT_UNET)
    assert maps.shape == (4, 16, 16)
    assert maps.dtype == torch.float32
    assert not maps.requires_grad
    assert maps.min() >= 0
    torch.testing.assert_close(maps.flatten(1).amax(dim=1), torch.ones(4))
    assert (maps[inputs.slices[:, 0] <= -0.95] == 0).all()


@pytest.mark.parametrize(("mode", "guidance_scale"), [*((mode, 0.0) for mode in MODES), *((mode, 20.0) for mode in GUIDED)])
def test_slice_alone_equals_the_slice_in_any_batch_and_order(mode: Any, guidance_scale: float) -> None:
    model, inputs = lively_model(), tiny_inputs(4)
    settings = FAST.replace(mode=mode, guidance_scale=guidance_scale, noise_levels=(0.6,), num_draws=1)
    # Algorithm 1 divides the difference of two float32 trajectories by 1 - tau, and with it their rounding.
    tolerance = 1e-3 if mode in ("reference", "cg_cdm") else 1e-4
    together = saliency_maps(model, inputs, settings)
    for batch_images in (2, 6):
        again = saliency_maps(model, inputs, settings.replace(batch_images=batch_images))
        torch.testing.assert_close(again, together, atol=tolerance, rtol=tolerance)
    for order in ([2], [3, 1, 2, 0]):
        some = saliency_maps(model, taken(inputs, order), settings)
        torch.testing.assert_close(some, together[order], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("mode", MODES)
def test_seed_decides_alone(mode: Any) -> None:
    model, inputs, settings = lively_model(), tiny_inputs(2), FAST.replace(mode=mode, cam_weight=0.0)
    first = saliency_maps(model, inputs, settings)
    torch.manual_seed(999)
    assert torch.equal(saliency_maps(model, inputs, settings), first)
    change = (saliency_maps(model, inputs, settings.replace(seed=1)) - first).abs().max()
    assert change == 0 if mode in WITHOUT_NOISE else change > 0.01


def test_same_image_at_another_place_of_the_volume_has_other_noise() -> None:
    first, second = (tiny_inputs(2, first_index=index) for index in (0, 1))
    assert not torch.equal(draw_noise(first, 0, 0), draw_noise(second, 0, 0))
    assert torch.equal(draw_noise(first, 0, 0)[1], draw_noise(second, 0, 0)[0])


@pytest.mark.parametrize("mode", MODES)
def test_no_call_is_larger_than_batch_images(mode: Any) -> None:
    model = lively_model()
    with batch_sizes(model.unet) as sizes, batch_sizes(model.classifier.conv_in) as classified:
        saliency_maps(model, tiny_inputs(5), FAST.replace(mode=mode, batch_images=4, num_draws=3, noise_levels=(0.6,)))
    assert max(sizes, default=0) <= 4
    assert max(classified, default=0) <= 4


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "intensity"])
def test_classes_have_maps_of_their_own(mode: Any) -> None:
    first, second = (saliency_maps(lively_model(), tiny_inputs(class_index=index), FAST.replace(mode=mode)) for index in (0, 1))
    assert (first - second).abs().max() > 0.05


@pytest.mark.parametrize("mode", MODES)
def test_no_slices_no_maps(mode: Any) -> None:
    model = lively_model()
    assert saliency_maps(model, taken(tiny_inputs(), []), FAST.replace(mode=mode)).shape == (0, 16, 16)
    assert model.counter.images == 0


def test_cam_weight_mixes_two_maps_of_unit_peak() -> None:
    model, inputs = lively_model(), tiny_inputs()
    alone = saliency_maps(model, inputs, FAST.replace(cam_weight=0.0))
    cam = layer_cam(model, inputs) * (inputs.slices[:, 0] > -0.95)
    cam = cam / cam.amax(dim=(1, 2), keepdim=True)
    for weight in (0.5, 2.0):
        expected = alone + weight * cam
        expected = expected / expected.amax(dim=(1, 2), keepdim=True)
        torch.testing.assert_close(saliency_maps(model, inputs, FAST.replace(cam_weight=weight)), expected, atol=1e-5, rtol=1e-4)


def test_smoothing_spreads_the_map() -> None:
    model, inputs = lively_model(), tiny_inputs()
    rough, smooth = (saliency_maps(model, inputs, FAST.replace(cam_weight=0.0, smoothing_px=s)) for s in (0.0, 2.0))
    assert smooth.diff(dim=2).abs().mean() < 0.5 * rough.diff(dim=2).abs().mean()


def test_opposite_signs_share_no_pixel() -> None:
    model, inputs, plain = lively_model(), tiny_inputs(), FAST.replace(cam_weight=0.0, smoothing_px=0.0)
    brighter, darker = (saliency_maps(model, inputs, plain.replace(sign=sign)) for sign in ("positive", "negative"))
    assert (brighter * darker == 0).all()
    assert brighter.sum() > 0
    assert darker.sum() > 0


@pytest.mark.parametrize("mode", ["parallel", "derivative", "reference", "cg_diff", "forward_process"])
def test_condition_that_does_nothing_gives_an_empty_map(mode: Any) -> None:
    model = lively_model()
    model.condition_embedding.class_vectors.zero_()
    settings = FAST.replace(mode=mode, cam_weight=0.0)
    maps = saliency_maps(model, tiny_inputs(), settings)
    assert maps.isfinite().all()
    if mode == "reference":  # divides float32 rounding between two places of a batch by 1 - tau, so it is small, not zero
        with torch.no_grad():
            nothing, something = (METHODS[mode](m, tiny_inputs(), settings).abs().max() for m in (model, lively_model()))
        assert nothing < 0.02 * something
    elif mode in ("parallel", "derivative"):  # the others compare a reconstruction with the slice
        assert (maps == 0).all()


def test_slice_without_a_body_is_empty() -> None:
    inputs = tiny_inputs(2)
    inputs.slices[1] = -1.0
    maps = saliency_maps(lively_model(), inputs, FAST)
    assert (maps[1] == 0).all()
    assert maps[0].max() == 1


def test_unit_peak() -> None:
    maps = torch.tensor([[[0.0, 0.2], [0.4, 0.1]], [[0.0, 0.0], [0.0, 0.0]], [[3.0, 0.0], [0.0, 6.0]]])
    expected = torch.tensor([[[0.0, 0.5], [1.0, 0.25]], [[0.0, 0.0], [0.0, 0.0]], [[0.5, 0.0], [0.0, 1.0]]])
    torch.testing.assert_close(unit_peak(maps), expected)

"""LayerCAM: against its formula, range, mirror symmetry, and an empty map from a classifier that sees nothing."""

from __future__ import annotations

import pytest
import torch

from app_cdm.config import SaliencySettings
from app_cdm.networks.classifier import NoiseConditionalClassifier
from app_cdm.networks.presets import PRESETS, build_classifier
from app_cdm.saliency.base import SaliencyInputs, SaliencyModel
from app_cdm.saliency.cam import layer_cam, layer_cam_saliency, resize_to_slice
from tests.saliency.counting import batch_sizes
from tests.tiny_networks import tiny_inputs, tiny_saliency_model


def between_places(cam: torch.Tensor, size: int) -> torch.Tensor:
    """A square map with place j on pixel j * stride, linear between places and constant behind the last one."""
    stride = size // len(cam)
    for dim in (0, 1):
        where = torch.arange(size) / stride
        low = where.floor().long()
        share = (where - low).unsqueeze(1 - dim)
        cam = cam.index_select(dim, low) * (1 - share) + cam.index_select(dim, (low + 1).clamp_max(cam.shape[dim] - 1)) * share
    return cam


def cam_by_definition(model: SaliencyModel, image: torch.Tensor, class_index: int) -> torch.Tensor:
    """sum_k relu(relu(dy/dA_k) A_k) of the last residual block of each of the last two stages (Jiang et al. 2021)."""
    caught: list[torch.Tensor] = []
    hooks = [
        block.resnets[-1].register_forward_hook(lambda _module, _inputs, output: caught.append(output))
        for block in model.classifier.down_blocks[-2:]
    ]
    logit = model.classifier(image[None].requires_grad_(True), torch.zeros(1, dtype=torch.long))[0, class_index]
    for hook in hooks:
        hook.remove()
    total = torch.zeros(image.shape[1:])
    for activation, gradient in zip(caught, torch.autograd.grad(logit, caught), strict=True):
        cam = (gradient.relu() * activation).relu().sum(dim=1, keepdim=True).detach()
        cam = between_places(cam[0, 0], image.shape[1])
        total += cam / cam.max()
    return total / 2


def test_equals_its_definition_on_the_slice_and_its_mirror_image() -> None:
    model, inputs = tiny_saliency_model(), tiny_inputs()
    found = layer_cam(model, inputs)
    for saliency, image in zip(found, inputs.slices, strict=True):
        plain = cam_by_definition(model, image.clone(), inputs.class_index)
        mirrored = cam_by_definition(model, image.flip(-1).clone(), inputs.class_index).flip(-1)
        torch.testing.assert_close(saliency, (plain + mirrored) / 2, atol=1e-5, rtol=1e-4)


def test_range_and_shape_in_any_batch() -> None:
    model, inputs = tiny_saliency_model(), tiny_inputs(5)
    with torch.no_grad():
        maps = layer_cam(model, inputs)
        with batch_sizes(model.classifier.conv_in) as sizes:
            torch.testing.assert_close(layer_cam(model, inputs, 2), maps, atol=1e-5, rtol=1e-4)
    assert max(sizes) <= 2
    assert maps.shape == (5, 16, 16)
    assert maps.dtype == torch.float32
    assert maps.min() >= 0
    assert maps.max() <= 1
    assert (maps.flatten(1).amax(dim=1) > 0.3).all()


def test_map_of_a_mirrored_slice_is_the_mirrored_map() -> None:
    model, inputs = tiny_saliency_model(), tiny_inputs()
    mirrored = SaliencyInputs(inputs.slices.flip(-1), inputs.positions, inputs.slice_indices, inputs.class_index)
    torch.testing.assert_close(layer_cam(model, mirrored), layer_cam(model, inputs).flip(-1), atol=1e-5, rtol=1e-4)


def test_classifier_that_sees_nothing_gives_an_empty_map() -> None:
    model = tiny_saliency_model()
    model.classifier.conv_out.weight.zero_()
    maps = layer_cam(model, tiny_inputs())
    assert torch.equal(maps, torch.zeros(3, 16, 16))


def test_classes_have_maps_of_their_own() -> None:
    model = tiny_saliency_model()
    assert (layer_cam(model, tiny_inputs(class_index=0)) - layer_cam(model, tiny_inputs(class_index=1))).abs().max() > 0.05


def test_mode_is_the_map() -> None:
    model, inputs = tiny_saliency_model(), tiny_inputs(5)
    with batch_sizes(model.classifier.conv_in) as sizes:
        found = layer_cam_saliency(model, inputs, SaliencySettings(mode="layer_cam", batch_images=2))
    assert max(sizes) == 2
    torch.testing.assert_close(found, layer_cam(model, inputs), atol=1e-5, rtol=1e-4)
    assert model.counter.images == 0


def symmetric_classifier() -> NoiseConditionalClassifier:
    """A classifier with kernels that are their own mirror images, and without normalisation, by which a place would see all others."""
    torch.manual_seed(0)
    classifier = build_classifier(PRESETS["tiny"], 1).eval().requires_grad_(False)
    for name, module in list(classifier.named_modules()):
        if isinstance(module, torch.nn.Conv2d):
            both = (module.weight + module.weight.flip(-1)) / 2
            module.weight.copy_((both + both.flip(-2)) / 2)
        elif isinstance(module, torch.nn.GroupNorm):
            classifier.set_submodule(name, torch.nn.Identity())
    return classifier


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_value_lies_where_the_network_looked(stage: int) -> None:
    """The pixels that a place of a stage reacts to have their centre where `resize_to_slice` puts the place."""
    slices = torch.full((1, 1, 128, 128), 0.5, requires_grad=True)  # larger than what a place of the last stage sees
    with torch.enable_grad():
        _, stages = symmetric_classifier().forward_features(slices, torch.zeros(1, dtype=torch.long))
        row, column = (side // 2 for side in stages[stage].shape[2:])
        reaction = torch.autograd.grad(stages[stage][0, :, row, column].square().sum(), slices)[0][0, 0].square()
    place = torch.zeros(1, 1, *stages[stage].shape[2:])
    place[0, 0, row, column] = 1
    placed = resize_to_slice(place, (128, 128))[0, 0]
    assert torch.equal(placed, between_places(place[0, 0], 128))
    torch.testing.assert_close(centre(reaction), centre(placed), atol=0.01, rtol=0)


def centre(weights: torch.Tensor) -> torch.Tensor:
    """`(2,)` row and column of the centre of mass."""
    return torch.stack([(weights.sum(dim) * torch.arange(float(len(weights)))).sum() for dim in (1, 0)]) / weights.sum()

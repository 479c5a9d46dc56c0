"""GradCAM: against gradient times activation written out, mirror symmetry, and a classifier that is left alone."""

from __future__ import annotations

import pytest
import torch

from app_cdm.config import SaliencySettings
from app_cdm.networks.presets import build_classifier
from app_cdm.saliency.base import SaliencyInputs, SaliencyModel
from app_cdm.saliency.cam import layer_cam
from app_cdm.saliency.grad_cam import grad_cam_saliency
from tests.saliency.counting import batch_sizes
from tests.saliency.test_cam import between_places
from tests.tiny_networks import TINY, tiny_inputs, tiny_saliency_model

SETTINGS = SaliencySettings(mode="grad_cam")


def grad_cam_by_definition(model: SaliencyModel, image: torch.Tensor, class_index: int) -> torch.Tensor:
    """relu(sum_k alpha_k A_k), alpha_k the mean of dy/dA_k over places (Selvaraju et al. 2017, equations 1 and 2)."""
    caught: list[torch.Tensor] = []
    hook = model.classifier.down_blocks[-1].resnets[-1].register_forward_hook(lambda _module, _inputs, output: caught.append(output))
    logit = model.classifier(image[None].requires_grad_(True), torch.zeros(1, dtype=torch.long))[0, class_index]
    hook.remove()
    activation = caught[0]
    gradient = torch.autograd.grad(logit, activation)[0]
    cam = torch.einsum("k,khw->hw", gradient[0].mean(dim=(1, 2)), activation[0]).clamp(min=0).detach()
    cam = between_places(cam, image.shape[1])
    return cam / cam.max().clamp_min(1e-12)


@pytest.mark.parametrize("class_index", [0, 1])
def test_equals_its_definition_on_the_slice_and_its_mirror_image(class_index: int) -> None:
    model, inputs = tiny_saliency_model(), tiny_inputs(class_index=class_index)
    with torch.no_grad():
        found = grad_cam_saliency(model, inputs, SETTINGS)
    assert found.shape == (3, 16, 16)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    for saliency, image in zip(found, inputs.slices, strict=True):
        plain = grad_cam_by_definition(model, image.clone(), class_index)
        mirrored = grad_cam_by_definition(model, image.flip(-1).clone(), class_index).flip(-1)
        assert plain.max() > 0.9
        torch.testing.assert_close(saliency, (plain + mirrored) / 2, atol=1e-5, rtol=1e-4)


def test_last_stage_of_a_deeper_classifier() -> None:
    torch.manual_seed(0)
    model = tiny_saliency_model()
    deep = build_classifier(TINY.replace(classifier_channels=(16, 32, 32)), 2).eval().requires_grad_(False)
    deep = SaliencyModel(model.unet, model.condition_embedding, deep, model.scheduler, model.patch_size)
    inputs = tiny_inputs(1)
    plain = grad_cam_by_definition(deep, inputs.slices[0].clone(), 1)
    mirrored = grad_cam_by_definition(deep, inputs.slices[0].flip(-1).clone(), 1).flip(-1)
    torch.testing.assert_close(grad_cam_saliency(deep, inputs, SETTINGS)[0], (plain + mirrored) / 2, atol=1e-5, rtol=1e-4)


def test_map_of_a_mirrored_slice_is_the_mirrored_map() -> None:
    model, inputs = tiny_saliency_model(), tiny_inputs()
    mirrored = SaliencyInputs(inputs.slices.flip(-1), inputs.positions, inputs.slice_indices, inputs.class_index)
    found = grad_cam_saliency(model, mirrored, SETTINGS)
    torch.testing.assert_close(found, grad_cam_saliency(model, inputs, SETTINGS).flip(-1), atol=1e-5, rtol=1e-4)


def test_leaves_the_classifier_as_it_was_and_the_unet_alone() -> None:
    model, inputs = tiny_saliency_model(), tiny_inputs()
    model.classifier.requires_grad_(True)  # as in a model that has just been trained
    with batch_sizes(model.unet) as sizes:
        grad_cam_saliency(model, inputs, SETTINGS)
    assert not sizes
    assert model.counter.images == 0
    assert not any(module._forward_hooks or module._backward_hooks for module in model.classifier.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.classifier.parameters())


def test_is_another_map_than_layer_cam_and_empty_where_the_classifier_sees_nothing() -> None:
    model, inputs = tiny_saliency_model(), tiny_inputs()
    assert (grad_cam_saliency(model, inputs, SETTINGS) - layer_cam(model, inputs)).abs().max() > 0.05
    model.classifier.conv_out.weight.zero_()
    assert torch.equal(grad_cam_saliency(model, inputs, SETTINGS), torch.zeros(3, 16, 16))

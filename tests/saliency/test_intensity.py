"""Intensity as a map: the slice itself, inside the body, without any network."""

from __future__ import annotations

import torch

from app_cdm.config import SaliencySettings
from app_cdm.saliency.base import SaliencyInputs
from app_cdm.saliency.combine import saliency_maps
from app_cdm.saliency.intensity import intensity_saliency
from tests.saliency.counting import batch_sizes
from tests.tiny_networks import tiny_inputs, tiny_saliency_model

PLAIN = SaliencySettings(mode="intensity", smoothing_px=0.0)


def test_is_the_slice_scaled_to_0_1_and_its_sign() -> None:
    model = tiny_saliency_model()
    slices = torch.tensor([-1.0, -0.5, 0.0, 0.8, 1.0]).view(1, 1, 1, 5)
    inputs = SaliencyInputs(slices, torch.tensor([0.5]), (0,), 0)
    expected = {"positive": [0.0, 0.25, 0.5, 0.9, 1.0], "negative": [1.0, 0.75, 0.5, 0.1, 0.0], "magnitude": [1.0, 0.5, 0.0, 0.8, 1.0]}
    for sign, values in expected.items():
        torch.testing.assert_close(intensity_saliency(model, inputs, PLAIN.replace(sign=sign))[0, 0], torch.tensor(values))


def test_order_of_pixels_is_the_slices_and_dark_lesions_need_the_other_sign() -> None:
    model, inputs = tiny_saliency_model(), tiny_inputs(2)
    inputs.slices[:, 0, 5, 7], inputs.slices[:, 0, 9, 4] = 0.99, -0.9  # brightest and darkest place of the body
    body = inputs.slices[:, 0] > -0.95
    with batch_sizes(model.unet) as sizes, batch_sizes(model.classifier) as classified:
        bright, dark = (saliency_maps(model, inputs, PLAIN.replace(sign=sign)) for sign in ("positive", "negative"))
    assert not sizes and not classified
    assert model.counter.images == 0
    for index in range(2):
        torch.testing.assert_close(bright[index][body[index]], (1 + inputs.slices[index, 0][body[index]]) / 1.99)
        assert divmod(int(bright[index].argmax()), 16) == (5, 7)
        assert divmod(int(dark[index].argmax()), 16) == (9, 4)  # air is darker, but no body

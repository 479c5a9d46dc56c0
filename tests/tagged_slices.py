"""Two small volumes of tagged slices and a pixel decoder that fits the tiny networks, for the tests of the later stages."""

from __future__ import annotations

import torch

from app_cdm.cldf.features import FeatureSettings
from app_cdm.data.dataset import TaggedSlices
from app_cdm.networks.decoder import PixelDecoder

FEATURES = FeatureSettings((0.2, 0.4), (), (0, 1))
CHANNELS = (32, 16)  # of the tiny U-Net's decoder blocks


def two_volumes(seed: int = 0) -> TaggedSlices:
    """A volume of five slices and one of four; the blob is on every slice where the first class is present."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.tensor([[0, 1], [1, 0], [1, -1], [1, 1], [0, 0], [1, -1], [1, 0], [0, 1], [0, 0]], dtype=torch.int8)
    slices = torch.full((9, 1, 16, 16), -1.0)
    slices[:, :, 2:14, 2:14] = torch.rand(9, 1, 12, 12, generator=generator) * 0.5 - 0.6
    slices[states[:, 0] == 1, :, 5:9, 6:10] += 0.9
    volume_index = torch.tensor([0] * 5 + [1] * 4)
    return TaggedSlices(slices, states, torch.linspace(0.1, 0.9, 9), volume_index, ("first", "second"), ("blob", "other"))


def tiny_decoder(features: FeatureSettings = FEATURES, num_classes: int = 2, seed: int = 0) -> PixelDecoder:
    """An untrained pixel decoder."""
    torch.manual_seed(seed)
    views = len(features.null_levels) + len(features.contrast_levels)
    channels = [views * CHANNELS[block] for block in features.blocks]
    decoder = PixelDecoder(num_classes, channels, features.to_dict(), 16, 4, num_foreground=2, num_background=3)
    return decoder.eval().requires_grad_(False)

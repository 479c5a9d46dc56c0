"""Maps of a trained pixel decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from app_cdm.cldf.features import FeatureSettings, extract_features
from app_cdm.networks.decoder import PixelDecoder
from app_cdm.saliency.base import SaliencyInputs, SaliencyModel, chunks


def decoder_maps(model: SaliencyModel, decoder: PixelDecoder, inputs: SaliencyInputs, batch_images: int = 64) -> torch.Tensor:
    """`(S, H, W)` maps of one class; see `decoder_maps_of_classes`."""
    return decoder_maps_of_classes(model, decoder, inputs, [inputs.class_index], batch_images)[:, 0]


def decoder_maps_of_classes(
    model: SaliencyModel, decoder: PixelDecoder, inputs: SaliencyInputs, class_indices: Sequence[int], batch_images: int = 64
) -> torch.Tensor:
    """Probability of each pixel that a class is there: similarity to its prototypes against those of the background.

    Args:
        model: the networks of the diffusion model.
        decoder: the pixel decoder.
        inputs: S slices and the class that contrast features are of.
        class_indices: the K classes whose maps are wanted, all from the same features.
        batch_images: most U-Net images in one call; a slice has up to three, and at least one slice is in a call.

    Returns:
        `(S, K, H, W)` float32 in [0, 1], bilinear from the resolution of the finest features; 0.5 at the decoder's threshold.
    """
    settings, size, maps = feature_settings(decoder), tuple(inputs.slices.shape[2:]), []
    with torch.no_grad():
        for part in chunks(inputs, settings.num_evaluations, batch_images):
            embedding = decoder(extract_features(model, part, settings))
            small = [decoder.probability(embedding, index)[:, None] for index in class_indices]
            large = [F.interpolate(one, size=size, mode="bilinear", align_corners=False) for one in small]
            maps.append(torch.cat(large, dim=1).float().cpu())
    return torch.cat(maps)


def feature_settings(decoder: PixelDecoder) -> FeatureSettings:
    """The features that a decoder was trained on."""
    return FeatureSettings.from_dict(dict(decoder.config.features))

"""Maps of a trained pixel decoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from app_cdm.cldf.features import FeatureSettings, extract_features
from app_cdm.networks.decoder import PixelDecoder
from app_cdm.saliency.base import SaliencyInputs, SaliencyModel


def decoder_maps(model: SaliencyModel, decoder: PixelDecoder, inputs: SaliencyInputs) -> torch.Tensor:
    """Probability of each pixel that the class is there: similarity to its prototypes against those of the background.

    Args:
        model: the networks of the diffusion model.
        decoder: the pixel decoder.
        inputs: S slices and the class.

    Returns:
        `(S, H, W)` float32 in [0, 1], bilinear from the resolution of the finest features; 0.5 at the decoder's threshold.
    """
    settings = FeatureSettings.from_dict(dict(decoder.config.features))
    with torch.no_grad():
        features = extract_features(model, inputs, settings)
        maps = decoder.probability(decoder(features), inputs.class_index)
        size = tuple(inputs.slices.shape[2:])
        return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0].float().cpu()

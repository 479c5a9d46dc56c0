"""The pixel decoder: unit embeddings, margins against loops, probability, and its folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from app_cdm.cldf.decode import decoder_maps
from app_cdm.cldf.features import FeatureSettings, extract_features
from app_cdm.networks.decoder import PixelDecoder
from tests.tagged_slices import FEATURES, tiny_decoder
from tests.tiny_networks import tiny_inputs, tiny_saliency_model


def features(count: int = 2, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, channels, size, size, generator=generator) for channels, size in ((64, 4), (32, 8))]


def test_embedding_has_unit_length_at_the_finest_resolution() -> None:
    embedding = tiny_decoder()(features())
    assert embedding.shape == (2, 4, 8, 8)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2, 8, 8))


@pytest.mark.parametrize("block", [0, 1])
def test_every_block_and_every_slice_has_its_own_say(block: int) -> None:
    decoder, given = tiny_decoder(), features()
    before = decoder(given)
    given[block][1] = torch.randn(given[block].shape[1:], generator=torch.Generator().manual_seed(9))
    after = decoder(given)
    torch.testing.assert_close(after[0], before[0])
    assert (after[1] - before[1]).abs().max() > 0.05


def test_a_block_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        tiny_decoder()(features()[:1])


@pytest.mark.parametrize("class_index", [0, 1])
def test_margin_is_the_nearest_of_the_class_less_the_nearest_of_the_background(class_index: int) -> None:
    decoder = tiny_decoder()
    embedding = decoder(features())
    margin = decoder.margin(embedding, class_index)
    assert margin.shape == (2, 8, 8)
    for n, row, column in ((0, 0, 0), (0, 3, 5), (1, 7, 7)):
        pixel = embedding[n, :, row, column]
        near, far = (max(float(pixel @ p) for p in prototypes[class_index]) for prototypes in (decoder.foreground, decoder.background))
        assert float(margin[n, row, column]) == pytest.approx(near - far, abs=1e-5)


def test_probability_is_one_half_at_the_threshold_of_its_class_and_rises_with_the_margin() -> None:
    decoder = tiny_decoder()
    embedding = decoder(features())
    margin = decoder.margin(embedding, 1)
    decoder.threshold[1], decoder.spread[1] = margin[0, 2, 3], 0.25
    decoder.threshold[0] = 9.0
    probability = decoder.probability(embedding, 1)
    assert float(probability[0, 2, 3]) == 0.5
    torch.testing.assert_close(torch.logit(probability.double()), (margin - margin[0, 2, 3]).double() * 4, atol=1e-3, rtol=1e-3)


def test_folder_holds_prototypes_threshold_and_feature_settings(tmp_path: Path) -> None:
    decoder = tiny_decoder()
    decoder.threshold[:], decoder.spread[:] = torch.tensor([0.3, -0.1]), torch.tensor([0.2, 0.4])
    decoder.save_pretrained(tmp_path)
    again = PixelDecoder.from_pretrained(tmp_path)
    assert FeatureSettings.from_dict(dict(again.config.features)) == FEATURES
    assert decoder.state_dict().keys() >= {"foreground", "background", "threshold", "spread"}
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert torch.equal(again.probability(again(features()), 1), decoder.probability(decoder(features()), 1))


def test_maps_are_the_probability_of_the_features_at_the_size_of_the_slice() -> None:
    model, inputs, decoder = tiny_saliency_model(), tiny_inputs(3), tiny_decoder()
    maps = decoder_maps(model, decoder, inputs)
    small = decoder.probability(decoder(extract_features(model, inputs, FEATURES)), inputs.class_index)
    expected = torch.nn.functional.interpolate(small[:, None], size=(16, 16), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(maps, expected, atol=1e-5, rtol=1e-4)
    assert maps.dtype == torch.float32
    assert maps.min() >= 0
    assert maps.max() <= 1
    other = decoder_maps(model, decoder, tiny_inputs(3, class_index=0))
    assert (other - maps).abs().max() > 0.01, "each class has prototypes of its own"

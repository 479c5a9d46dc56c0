"""The noise-conditional classifier: shapes, pooling, dependence on noise level, dropout in training alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from app_cdm.networks.classifier import NoiseConditionalClassifier


def classifier(num_classes: int = 2, sharpness: float = 2.0, layers: int = 1) -> NoiseConditionalClassifier:
    torch.manual_seed(0)
    return NoiseConditionalClassifier(num_classes, (16, 24, 32), layers, 8, sharpness).eval().requires_grad_(False)


def places_of(network: NoiseConditionalClassifier, sample: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """Log-odds of every place, caught where the network makes them."""
    caught: list[torch.Tensor] = []
    hook = network.conv_out.register_forward_hook(lambda _module, _inputs, output: caught.append(output))
    network(sample, timesteps)
    hook.remove()
    return caught[0].flatten(2)


@pytest.mark.parametrize("layers", [1, 2])
def test_shapes(layers: int) -> None:
    logits, stages = classifier(3, layers=layers).forward_features(torch.randn(4, 1, 32, 48), torch.zeros(4, dtype=torch.long))
    assert logits.shape == (4, 3)
    assert [tuple(stage.shape) for stage in stages] == [(4, 16, 16, 24), (4, 24, 8, 12), (4, 32, 4, 6)]


@pytest.mark.parametrize("sharpness", [0.5, 2.0, 10.0])
def test_log_odds_are_the_log_mean_exp_of_the_places(sharpness: float) -> None:
    network, sample, timesteps = classifier(sharpness=sharpness), torch.randn(3, 1, 32, 32), torch.tensor([0, 10, 500])
    network.conv_out.weight.mul_(10)
    places = places_of(network, sample, timesteps).double()
    expected = (sharpness * places).exp().mean(dim=2).log() / sharpness
    logits = network(sample, timesteps)
    torch.testing.assert_close(logits.double(), expected, atol=1e-5, rtol=1e-5)
    assert (logits >= places.mean(dim=2) - 1e-5).all()
    assert (logits <= places.amax(dim=2) + 1e-5).all()


def test_sharp_pooling_needs_one_place_alone() -> None:
    network, sample, timesteps = classifier(sharpness=10.0), torch.randn(3, 1, 32, 32), torch.zeros(3, dtype=torch.long)
    network.conv_out.weight.mul_(100)
    places = places_of(network, sample, timesteps)
    torch.testing.assert_close(network(sample, timesteps), places.amax(dim=2), atol=float(torch.tensor(16.0).log()) / 10 + 1e-3, rtol=0)


def test_timestep_matters_and_every_image_has_its_own() -> None:
    network, sample = classifier(), torch.randn(1, 1, 32, 32).repeat(2, 1, 1, 1)
    together = network(sample, torch.tensor([0, 700]))
    assert (together[0] - together[1]).abs().max() > 1e-4
    torch.testing.assert_close(together[1:], network(sample[1:], torch.tensor([700])))


def test_dropout_in_training_alone() -> None:
    network, sample, timesteps = classifier(), torch.randn(2, 1, 32, 32), torch.zeros(2, dtype=torch.long)
    assert torch.equal(network(sample, timesteps), network(sample, timesteps))
    network.train()
    assert not torch.equal(network(sample, timesteps), network(sample, timesteps))


def test_dropout_drops_whole_channels_of_a_slice_as_it_is_told() -> None:
    network, sample, timesteps = classifier(), torch.randn(3, 1, 32, 32), torch.tensor([0, 10, 500])
    network.conv_out.weight.mul_(10)
    features: list[torch.Tensor] = []
    network.norm_out.register_forward_hook(lambda _module, _inputs, output: features.append(torch.nn.functional.silu(output)))
    plain = network(sample, timesteps)
    dropout = network.draw_dropout(3, torch.Generator().manual_seed(0))
    assert torch.equal(network(sample, timesteps, dropout), plain), "none out of training"
    network.train()
    found = network(sample, timesteps, dropout)
    places = network.conv_out(features[0] * dropout).flatten(2).double()
    torch.testing.assert_close(found.double(), (2.0 * places).exp().mean(dim=2).log() / 2.0, atol=1e-5, rtol=1e-5)
    assert (found - plain).abs().max() > 1e-2
    torch.testing.assert_close(network(sample[1:], timesteps[1:], dropout[1:]), found[1:])


def test_dropped_share_and_mean_of_the_factors() -> None:
    network = classifier()
    dropout = network.draw_dropout(2000, torch.Generator().manual_seed(1))
    assert dropout.shape == (2000, 32, 1, 1)
    assert set(dropout.unique().tolist()) == {0.0, 1.25}
    assert float((dropout == 0).float().mean()) == pytest.approx(network.config.dropout, abs=0.005)
    again = [network.draw_dropout(2000, torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    assert [torch.equal(dropout, other) for other in again] == [True, False]


def test_folder_round_trip(tmp_path: Path) -> None:
    network, sample, timesteps = classifier(3, 4.0), torch.randn(2, 1, 32, 32), torch.tensor([0, 5])
    network.save_pretrained(tmp_path, safe_serialization=True)
    loaded = NoiseConditionalClassifier.from_pretrained(tmp_path, use_safetensors=True).eval()
    assert torch.equal(loaded(sample, timesteps), network(sample, timesteps))
    assert loaded.config.pool_sharpness == 4.0

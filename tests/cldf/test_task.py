"""The decoder's loss against its parts, and the prototypes and threshold that are fitted to its seeds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from app_cdm.cldf.contrast import pixel_info_nce, prototype_loss, update_prototypes
from app_cdm.cldf.settings import CLDFSettings
from app_cdm.cldf.task import DecoderTask, SeededFeatures, fit_prototypes
from app_cdm.networks.decoder import PixelDecoder
from tests.tagged_slices import FEATURES, tiny_decoder

ALL_PIXELS = CLDFSettings(FEATURES, num_anchors=10_000, hard_share=0.0, prototype_weight=0.7, prototype_decay=0.8, temperature=0.3)


def seeded(seed: int = 0, count: int = 10, num_positive: int = 4) -> SeededFeatures:
    """Features of a quarter where the class is, on the first few slices; every slice's first feature tells its number."""
    rng = np.random.default_rng(seed)
    seeds = np.zeros((count, 8, 8), dtype=np.int8)
    seeds[:num_positive, :4, :4], seeds[:num_positive, 4, :] = 1, -1
    is_target = (seeds == 1).astype(float)[:, None]
    blocks = [
        (
            rng.normal(0, 0.3, (count, channels, size, size))
            + rng.normal(0, 1, (1, channels, 1, 1)) * (4 * is_target[:, :, ::step, ::step] - 2)
        )
        for channels, size, step in ((64, 4, 2), (32, 8, 1))
    ]
    for block in blocks:
        block[:, 0] = np.arange(count)[:, None, None] * 0.1
    return SeededFeatures([block.astype(np.float16) for block in blocks], torch.from_numpy(seeds))


def drawn_slices(decoder: PixelDecoder, task: DecoderTask, seed: int, batch_size: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The features that reach the decoder in one step, and the step's loss."""
    seen: list[torch.Tensor] = []
    hook = decoder.register_forward_pre_hook(lambda _module, entering: seen.extend(entering[0]))
    loss = task.loss(torch.Generator().manual_seed(seed), batch_size)
    hook.remove()
    return seen, loss


@pytest.mark.parametrize("seed", range(4))
def test_loss_is_the_sum_of_its_parts_and_prototypes_move_after_it(seed: int) -> None:
    decoder, classes = tiny_decoder(), [seeded(0), seeded(1)]
    before = [decoder.foreground.clone(), decoder.background.clone()]
    features, loss = drawn_slices(decoder, DecoderTask("x", decoder, classes, ALL_PIXELS), seed, 6)
    # Which class, slices and mirror image were drawn can be seen in the features.
    index = (features[1][:, 0, 0, 0] / 0.1).round().long()
    chosen = [
        (number, flip)
        for number, data in enumerate(classes)
        for flip in (False, True)
        if all(torch.equal(b, f.flip(-1) if flip else f) for b, f in zip(features, data.select(index), strict=True))
    ]
    assert len(chosen) == 1
    class_index, flip = chosen[0]
    assert sorted((index < 4).tolist(), reverse=True) == [True] * 3 + [False] * 3
    seeds = classes[class_index].seeds[index]
    pixels = decoder(features).permute(0, 2, 3, 1)
    own, other = (part[class_index] for part in before)
    foreground, background = (pixels[(seeds.flip(-1) if flip else seeds) == value] for value in (1, 0))
    expected = pixel_info_nce(foreground, background, 0.3)
    expected = expected + 0.7 * (prototype_loss(foreground, own, other, 0.3) + prototype_loss(background, other, own, 0.3))
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    update_prototypes(own, foreground, 0.8)
    update_prototypes(other, background, 0.8)
    for found, wanted in zip((decoder.foreground, decoder.background), before, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_every_class_and_mirror_image_is_drawn() -> None:
    decoder, classes = tiny_decoder(), [seeded(0), seeded(1)]
    task = DecoderTask("x", decoder, classes, ALL_PIXELS)
    kinds = set()
    for seed in range(16):
        features, _ = drawn_slices(decoder, task, seed, 4)
        index = (features[1][:, 0, 0, 0] / 0.1).round().long()
        kinds |= {
            (c, f)
            for c in (0, 1)
            for f in (False, True)
            if torch.equal(features[1].flip(-1) if f else features[1], classes[c].select(index)[1])
        }
    assert kinds == {(0, False), (0, True), (1, False), (1, True)}


@pytest.mark.parametrize("num_positive", [0, 10])
def test_class_that_is_on_no_slice_or_on_every_slice_still_has_a_loss(num_positive: int) -> None:
    decoder = tiny_decoder(num_classes=1).requires_grad_(True)
    task = DecoderTask("x", decoder, [seeded(num_positive=num_positive)], ALL_PIXELS)
    loss = task.loss(torch.Generator().manual_seed(0), 6)
    loss.backward()
    assert loss.isfinite()
    assert decoder.conv_out.weight.grad is not None
    assert decoder.conv_out.weight.grad.isfinite().all()


def test_loss_draws_from_its_generator_alone() -> None:
    settings = ALL_PIXELS.replace(num_anchors=16, hard_share=0.5)
    losses = []
    for global_seed, seed in ((1, 0), (2, 0), (2, 5)):
        task = DecoderTask("x", tiny_decoder(), [seeded(0), seeded(1)], settings)
        torch.manual_seed(global_seed)
        losses.append(float(task.loss(torch.Generator().manual_seed(seed), 6)))
    assert losses[0] == losses[1] != losses[2]


def test_trained_and_fitted_decoder_tells_its_seeds_apart() -> None:
    decoder, classes = tiny_decoder().requires_grad_(True), [seeded(0), seeded(1)]
    task, generator = DecoderTask("x", decoder, classes, ALL_PIXELS), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(decoder.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = task.loss(generator, 6)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    fit_prototypes(decoder.requires_grad_(False), classes, seed=0, batch_size=3)
    for class_index, data in enumerate(classes):
        embedding = decoder(data.select(torch.arange(10)))
        margin, probability = decoder.margin(embedding, class_index), decoder.probability(embedding, class_index)
        foreground, background = (margin[data.seeds == value] for value in (1, 0))
        for prototypes in (decoder.foreground[class_index], decoder.background[class_index]):
            torch.testing.assert_close(prototypes.norm(dim=1), torch.ones(len(prototypes)))
        # No threshold tells the two kinds apart better, each weighted alike.
        threshold = float(decoder.threshold[class_index])
        gains = [
            float((foreground >= c).float().mean() - (background >= c).float().mean()) for c in (threshold, *torch.linspace(-2, 2, 101))
        ]
        assert gains[0] >= max(gains) - 0.01
        assert gains[0] > 0.9
        assert (probability[data.seeds == 1] > 0.5).float().mean() > 0.9
        assert (probability[data.seeds == 0] < 0.5).float().mean() > 0.9
        medians = float(foreground.median() - background.median())
        assert float(decoder.spread[class_index]) == pytest.approx(medians / 8, rel=1e-3)


def test_single_prototype_is_the_direction_of_the_mean() -> None:
    torch.manual_seed(0)
    decoder = PixelDecoder(1, (64, 32), FEATURES.to_dict(), 16, 4, num_foreground=1, num_background=1).eval().requires_grad_(False)
    data = seeded()
    fit_prototypes(decoder, [data], seed=0, batch_size=4)
    pixels = decoder(data.select(torch.arange(10))).permute(0, 2, 3, 1)
    for value, prototypes in ((1, decoder.foreground), (0, decoder.background)):
        torch.testing.assert_close(prototypes[0, 0], F.normalize(pixels[data.seeds == value].mean(dim=0), dim=0), atol=1e-4, rtol=1e-4)


def test_fit_is_deterministic_and_leaves_weights_alone() -> None:
    one, other, untouched = tiny_decoder(), tiny_decoder(), tiny_decoder()
    for decoder in (one, other):
        torch.manual_seed(id(decoder) % 1000)
        fit_prototypes(decoder, [seeded(0), seeded(1)], seed=7)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    for name, parameter in untouched.named_parameters():
        assert torch.equal(parameter, one.state_dict()[name])
    assert not torch.equal(one.foreground, untouched.foreground)

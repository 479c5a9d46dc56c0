"""The student's loss: its formula, pixels that do not count, and image and mask moved together."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from app_cdm.data.augmentation import AugmentationSettings
from app_cdm.data.dataset import BalancedSampler, TaggedSlices
from app_cdm.networks.student import StudentNetwork, with_neighbours
from app_cdm.student.pseudo import PseudoMasks
from app_cdm.student.settings import StudentSettings
from app_cdm.student.task import StudentTask, pseudo_mask_loss
from tests.tagged_slices import two_volumes

STILL = StudentSettings(channels=(8, 16), augmentation=AugmentationSettings(0.0, 0.0, 0.0, 0.0, 0.0, 0.0), noise=0.0)
GEOMETRY = AugmentationSettings(0.5, 30.0, 0.2, 0.1, 0.0, 0.0)


def example(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.double) * 3
    targets = (torch.rand(3, 2, 4, 4, generator=generator) < 0.4).double()
    return logits, targets, torch.randint(0, 3, (3, 2, 4, 4), generator=generator).double() / 2


def slow_loss(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, dice_weight: float) -> float:
    entropy, total_weight, dice = 0.0, 0.0, 0.0
    for c in range(logits.shape[1]):
        overlap, total = 0.0, 0.0
        values = (part[:, c].flatten().tolist() for part in (logits, targets, weights))
        for logit, target, weight in zip(*values, strict=True):
            p = 1 / (1 + math.exp(-logit))
            entropy -= weight * (target * math.log(p) + (1 - target) * math.log(1 - p))
            total_weight += weight
            overlap, total = overlap + weight * p * target, total + weight * (p + target)
        dice += (2 * overlap + 1) / (total + 1) / logits.shape[1]
    return entropy / max(total_weight, 1) + dice_weight * (1 - dice)


@examples(max_examples=30)
@given(st.integers(0, 999), st.floats(0, 5))
def test_loss_is_its_formula(seed: int, dice_weight: float) -> None:
    logits, targets, weights = example(seed)
    found = float(pseudo_mask_loss(logits, targets, weights, dice_weight))
    assert found == pytest.approx(slow_loss(logits, targets, weights, dice_weight), rel=1e-9)


def test_pixels_without_weight_have_no_gradient_and_the_others_have() -> None:
    logits, targets, weights = example()
    logits.requires_grad_(True)
    pseudo_mask_loss(logits, targets, weights, 1.0).backward()
    assert logits.grad is not None
    assert not logits.grad[weights == 0].any()
    assert (logits.grad[weights > 0] != 0).all()
    # Downhill is towards the target.
    assert (logits.grad[(weights > 0) & (targets == 1)] < 0).all()


def test_nothing_that_counts_is_no_loss() -> None:
    logits, targets, weights = example()
    logits.requires_grad_(True)
    loss = pseudo_mask_loss(logits, targets, weights * 0, 1.0)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


def make_task(settings: StudentSettings, masks: PseudoMasks | None = None, data: TaggedSlices | None = None) -> StudentTask:
    data = data or two_volumes()
    generator = torch.Generator().manual_seed(4)
    drawn = PseudoMasks(*(torch.rand(9, 2, 16, 16, generator=generator) for _ in range(2)))
    torch.manual_seed(0)
    network = StudentNetwork(2, settings.num_neighbours, settings.channels, settings.num_res_units, dropout=0.0).eval()
    return StudentTask("student", network, data, masks or drawn, settings)


def seen_by(task: StudentTask, seed: int = 0, batch_size: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What enters the network in one step, its answer, and the loss."""
    passed: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = task.module.register_forward_hook(lambda _module, entering, answer: passed.append((entering[0], answer)))
    loss = task.loss(torch.Generator().manual_seed(seed), batch_size)
    hook.remove()
    return *passed[0], loss


@pytest.mark.parametrize("num_neighbours", [0, 1, 2])
def test_without_augmentation_the_slices_and_masks_are_those_of_the_sampler(num_neighbours: int) -> None:
    task = make_task(STILL.replace(num_neighbours=num_neighbours, dice_weight=0.5))
    samples, logits, loss = seen_by(task)
    index = BalancedSampler(task.data, torch.Generator().manual_seed(0)).draw(6)  # the first thing a step draws
    expected = with_neighbours(task.data.slices, index, task.data.volume_index, num_neighbours)
    torch.testing.assert_close(samples, expected, atol=1e-5, rtol=0)
    parts = (logits, task.masks.targets[index], task.masks.weights[index])
    assert float(loss.detach()) == pytest.approx(slow_loss(*(part.detach().double() for part in parts), 0.5), rel=1e-4)


def test_image_neighbours_and_mask_are_moved_together() -> None:
    """Masks that are the image itself: what the network sees is what its answer is held against."""
    data = two_volumes()
    brightness = ((data.slices + 1) / 2).expand(-1, 2, -1, -1)
    settings = STILL.replace(augmentation=GEOMETRY, num_neighbours=0, dice_weight=0.5)
    task = make_task(settings, PseudoMasks(brightness, brightness), data)
    samples, logits, loss = seen_by(task, seed=3)
    moved = ((samples + 1) / 2).expand(-1, 2, -1, -1)
    index = BalancedSampler(data, torch.Generator().manual_seed(3)).draw(6)
    assert (moved - brightness[index]).abs().amax(dim=(1, 2, 3)).min() > 0.1, "every slice has moved"
    assert float(loss.detach()) == pytest.approx(slow_loss(*(part.detach().double() for part in (logits, moved, moved)), 0.5), rel=1e-4)
    still = with_neighbours(data.slices, index, data.volume_index, 1)
    three = seen_by(make_task(settings.replace(num_neighbours=1), PseudoMasks(brightness, brightness), data), seed=3)[0]
    torch.testing.assert_close(three[:, 1], samples[:, 0], atol=1e-5, rtol=0)
    assert not torch.equal(three[:, 0], still[:, 0])


def test_noise_is_on_the_image_alone_and_at_most_as_strong_as_told() -> None:
    plain, noisy = (seen_by(make_task(STILL.replace(noise=level)), batch_size=64)[0] for level in (0.0, 0.4))
    spread = (noisy - plain).flatten(1).std(dim=1)
    assert 0.3 < float(spread.max()) < 0.44
    assert float(spread.min()) < 0.1


def test_loss_draws_from_its_generator_alone() -> None:
    task = make_task(STILL.replace(augmentation=GEOMETRY, noise=0.2))
    first = task.loss(torch.Generator().manual_seed(1), 6)
    torch.manual_seed(77)
    assert torch.equal(task.loss(torch.Generator().manual_seed(1), 6), first)
    assert not torch.equal(task.loss(torch.Generator().manual_seed(2), 6), first)

"""The student's loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from app_cdm.data.augmentation import draw_augmentation
from app_cdm.data.dataset import BalancedSampler, TaggedSlices
from app_cdm.networks.student import StudentNetwork, with_neighbours
from app_cdm.student.pseudo import PseudoMasks
from app_cdm.student.settings import StudentSettings
from app_cdm.training.loop import TrainingTask


class StudentTask(TrainingTask):
    """Cross-entropy and soft Dice on the pixels of pseudo-masks that are sure; image and mask are moved together."""

    def __init__(self, name: str, network: StudentNetwork, data: TaggedSlices, masks: PseudoMasks, settings: StudentSettings) -> None:
        network.to(memory_format=torch.channels_last)
        self.name, self.data, self.masks, self.settings = name, data, masks, settings
        self.module: StudentNetwork = network

    def loss(self, generator: torch.Generator, batch_size: int) -> torch.Tensor:
        index = BalancedSampler(self.data, generator).draw(batch_size)
        samples = with_neighbours(self.data.slices, index, self.data.volume_index, self.settings.num_neighbours)
        drawn = draw_augmentation(samples.shape, self.settings.augmentation, generator)
        level = self.settings.noise * torch.rand(batch_size, 1, 1, 1, generator=generator)
        samples = drawn.on_images(samples)
        samples = samples + level * torch.randn(samples.shape, generator=generator)
        targets, weights = drawn.on_maps(self.masks.targets[index]), drawn.on_maps(self.masks.weights[index])
        device = next(self.module.parameters()).device
        logits = self.module(samples.to(device).contiguous(memory_format=torch.channels_last))
        return pseudo_mask_loss(logits, targets.to(device), weights.to(device), self.settings.dice_weight)


def pseudo_mask_loss(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, dice_weight: float) -> torch.Tensor:
    """Weighted binary cross-entropy plus `dice_weight` times one minus the weighted soft Dice of each class over the batch.

    Args:
        logits: `(B, C, H, W)`.
        targets: `(B, C, H, W)` in [0, 1].
        weights: `(B, C, H, W)`; 0 is ignored.
        dice_weight: see above.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    cross_entropy = (entropy * weights).sum() / weights.sum().clamp_min(1)
    probabilities = torch.sigmoid(logits)
    overlap = (weights * probabilities * targets).sum(dim=(0, 2, 3))
    total = (weights * (probabilities + targets)).sum(dim=(0, 2, 3))
    soft_dice = (2 * overlap + 1) / (total + 1)
    return cross_entropy + dice_weight * (1 - soft_dice.mean())

"""Pseudo-masks: what a student learns from, and how sure each pixel is."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from app_cdm.data.tags import ABSENT, PRESENT


@dataclass(frozen=True)
class PseudoMasks:
    """Targets of every slice and class, made from image-level tags alone.

    Attributes:
        targets: `(N, C, H, W)` float32 in [0, 1].
        weights: `(N, C, H, W)` float32 in [0, 1]; 0 is ignored.
    """

    targets: torch.Tensor
    weights: torch.Tensor


def pseudo_masks(probabilities: torch.Tensor, states: torch.Tensor, ignored_band: float, negative_weight: float = 1.0) -> PseudoMasks:
    """Targets from the probabilities of a teacher and the tags.

    A slice tagged absent is background everywhere, whatever the teacher says; of one tagged present the pixels count
    whose probability is at least `ignored_band` away from one half, and none where no pixel reaches one half, because
    such a slice contradicts its tag. Slices of unknown tag do not count.

    Args:
        probabilities: `(N, C, H, W)` in [0, 1].
        states: `(N, C)` int8 tag states.
        ignored_band: 0 uses every pixel.
        negative_weight: weight of the pixels of slices tagged absent.
    """
    present = (states == PRESENT)[:, :, None, None]
    absent = (states == ABSENT)[:, :, None, None]
    is_found = probabilities.amax(dim=(2, 3), keepdim=True) >= 0.5
    is_sure = (probabilities - 0.5).abs() >= ignored_band
    targets = torch.where(present, (probabilities >= 0.5).float(), torch.zeros_like(probabilities))
    weights = (present & is_found & is_sure).float() + negative_weight * absent.float()
    return PseudoMasks(targets, weights.expand_as(probabilities).contiguous())

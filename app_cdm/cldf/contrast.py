"""Supervised pixel InfoNCE with prototypes."""

from __future__ import annotations

import torch
import torch.nn.functional as F

PixelSets = tuple[torch.Tensor, torch.Tensor]


def draw_pixels(seeds: torch.Tensor, margin: torch.Tensor, count: int, hard_share: float, generator: torch.Generator) -> PixelSets:
    """Flat indices of foreground and background seed pixels, part of them hard.

    Hard pixels are those on the wrong side of, or closest to, the other class by the present margin.

    Args:
        seeds: `(B, h, w)` int8; 1 foreground, 0 background, -1 ignored.
        margin: `(B, h, w)` present margin, foreground positive.
        count: most pixels of either kind.
        hard_share: share of hard ones.
        generator: source of randomness.

    Returns:
        Two int64 vectors of positions in `seeds.flatten()`; either may be empty.
    """
    chosen = []
    for value, sign in ((1, 1.0), (0, -1.0)):
        candidates = torch.nonzero(seeds.flatten() == value)[:, 0]
        hard_count = min(int(count * hard_share), len(candidates))
        hardness = sign * margin.detach().flatten().cpu()[candidates]
        # Of a random pool four times as large, so that one mislabelled corner does not fill every batch.
        pool = torch.randperm(len(candidates), generator=generator)[: 4 * hard_count]
        hard = pool[hardness[pool].argsort()[:hard_count]]
        is_easy = torch.ones(len(candidates), dtype=torch.bool)
        is_easy[hard] = False  # a pixel that was drawn twice would be its own positive
        shuffled = torch.randperm(len(candidates), generator=generator)
        easy = shuffled[is_easy[shuffled]][: count - hard_count]
        chosen.append(candidates[torch.cat([hard, easy])])
    return chosen[0], chosen[1]


def pixel_info_nce(foreground: torch.Tensor, background: torch.Tensor, temperature: float) -> torch.Tensor:
    """Supervised contrastive loss between two sets of unit vectors (Wang et al. 2021, "Cross-image pixel contrast", equation 3).

    Every foreground pixel is an anchor; its positives are the other foreground pixels, its negatives all background
    pixels. Background pixels are no anchors: what is not the target need not look alike.

    Args:
        foreground: `(P, d)`.
        background: `(N, d)`.
        temperature: of the softmax.

    Returns:
        Scalar; 0 where there are fewer than two foreground pixels or no background pixel.
    """
    if len(foreground) < 2 or not len(background):
        return (foreground.sum() + background.sum()) * 0.0
    positive = foreground @ foreground.T / temperature
    negative = torch.logsumexp(foreground @ background.T / temperature, dim=1, keepdim=True)
    log_odds = positive - torch.logaddexp(positive, negative)
    others = ~torch.eye(len(foreground), dtype=torch.bool, device=foreground.device)
    return -log_odds[others].mean()


def prototype_loss(embeddings: torch.Tensor, own: torch.Tensor, other: torch.Tensor, temperature: float) -> torch.Tensor:
    """Cross-entropy of pixels between the prototypes of their own kind and those of the other.

    Args:
        embeddings: `(P, d)` unit vectors of one kind.
        own: `(k, d)` prototypes of that kind.
        other: `(m, d)` prototypes of the other.
        temperature: of the softmax.
    """
    if not len(embeddings):
        return embeddings.sum() * 0.0
    near = torch.logsumexp(embeddings @ own.T / temperature, dim=1)
    far = torch.logsumexp(embeddings @ other.T / temperature, dim=1)
    return F.softplus(far - near).mean()


@torch.no_grad()
def update_prototypes(prototypes: torch.Tensor, embeddings: torch.Tensor, decay: float) -> None:
    """Moves each prototype towards the mean of the pixels nearest to it, in place; one without pixels stays.

    Args:
        prototypes: `(k, d)` unit vectors.
        embeddings: `(P, d)` unit vectors.
        decay: share of the old prototype that is kept.
    """
    if not len(embeddings):
        return
    nearest = (embeddings @ prototypes.T).argmax(dim=1)
    for index in range(len(prototypes)):
        members = embeddings[nearest == index]
        if len(members):
            prototypes[index] = F.normalize(decay * prototypes[index] + (1 - decay) * members.mean(dim=0), dim=0)

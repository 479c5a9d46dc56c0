"""Gradients of the classifier with respect to its input."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from app_cdm.saliency.base import SaliencyModel


def logit_gradient(model: SaliencyModel, samples: torch.Tensor, timesteps: torch.Tensor, class_index: int) -> torch.Tensor:
    """grad_x [log p(present | x_t, t) - log p(absent | x_t, t)], which is the gradient of the log-odds.

    Args:
        model: the networks.
        samples: `(B, 1, H, W)` x_t.
        timesteps: `(B,)` int64.
        class_index: the class.

    Returns:
        `(B, 1, H, W)` float32.
    """
    with torch.enable_grad():
        leaf = samples.detach().requires_grad_(True)
        logits = model.classifier(leaf, timesteps)[:, class_index]
        return torch.autograd.grad(logits.sum(), leaf)[0].float()


def log_probability_gradient(
    model: SaliencyModel, samples: torch.Tensor, timesteps: torch.Tensor, class_index: int, presence: torch.Tensor
) -> torch.Tensor:
    """grad_x [p log p(present) + (1 - p) log p(absent)]; for p of 1 or 0 the gradient of classifier guidance.

    Dhariwal & Nichol 2021, Algorithm 2. A blended condition (tau of Algorithm 1) blends the log-probabilities.

    Args:
        model: the networks.
        samples: `(B, 1, H, W)` x_t.
        timesteps: `(B,)` int64.
        class_index: the class.
        presence: `(B,)` p of each image.

    Returns:
        `(B, 1, H, W)` float32.
    """
    with torch.enable_grad():
        leaf = samples.detach().requires_grad_(True)
        logits = model.classifier(leaf, timesteps)[:, class_index].float()
        weight = presence.to(logits.device)
        log_probability = weight * F.logsigmoid(logits) + (1 - weight) * F.logsigmoid(-logits)
        return torch.autograd.grad(log_probability.sum(), leaf)[0].float()

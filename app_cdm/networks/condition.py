"""The condition of the diffusion model: image-level tags and slice position as one embedding."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

ABSENT_INDEX, PRESENT_INDEX, NULL_INDEX = 0, 1, 2
NUM_FREQUENCIES = 4


class ConditionEmbedding(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Sum of one vector a class (absent, present or null) and one of the slice's position.

    Linear in the class weights, so that `tau f(present) + (1 - tau) f(absent)` is the embedding of blended weights and
    the derivative with respect to the condition is the direction `f(present) - f(absent)` (Hu et al. 2023).

    *Differs from the paper:* a null vector (label dropout), several classes at once, and the slice position as a
    known nuisance, so that the difference of two conditions need not explain where in the body the slice lies.

    Args:
        num_classes: number of classes C.
        embedding_dim: width of the U-Net's timestep embedding.
    """

    @register_to_config
    def __init__(self, num_classes: int, embedding_dim: int) -> None:
        super().__init__()
        self.class_vectors = nn.Parameter(torch.randn(num_classes, 3, embedding_dim) * 0.5)
        self.position = nn.Sequential(nn.Linear(2 * NUM_FREQUENCIES, embedding_dim), nn.SiLU(), nn.Linear(embedding_dim, embedding_dim))
        self.unknown_position = nn.Parameter(torch.zeros(embedding_dim))

    def forward(self, class_weights: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Embeds conditions.

        Args:
            class_weights: `(B, C, 3)` weights of absent, present and null; each row sums to one.
            positions: `(B,)` in [0, 1], NaN where unknown.

        Returns:
            `(B, embedding_dim)`.
        """
        known = ~torch.isnan(positions)
        place = torch.nan_to_num(positions, nan=0.0)[:, None]
        angles = place * torch.pi * 2.0 ** torch.arange(-1, NUM_FREQUENCIES - 1, device=place.device)
        encoded = self.position(torch.cat([angles.sin(), angles.cos()], dim=1).to(self.class_vectors.dtype))
        where = torch.where(known[:, None], encoded, self.unknown_position)
        return torch.einsum("bck,cke->be", class_weights.to(where.dtype), self.class_vectors) + where


def class_weights_from_states(states: torch.Tensor) -> torch.Tensor:
    """`(B, C)` tag states (1 present, 0 absent, -1 unknown) as `(B, C, 3)` one-hot weights; unknown becomes null."""
    return nn.functional.one_hot(torch.where(states < 0, NULL_INDEX, states.long()), 3).float()

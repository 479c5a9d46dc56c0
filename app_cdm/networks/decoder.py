"""The pixel decoder of CLDF: frozen diffusion features to a unit-length embedding, and the prototypes that it is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn


class PixelDecoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Convolutions to a low-dimensional embedding, with prototypes of every class and of the background.

    A 1x1 convolution projects each block's features at their own resolution; their sum at the finest one passes two 3x3
    convolutions with GroupNorm and SiLU and a last one to the embedding.

    Args:
        num_classes: number of classes C.
        in_channels: channels of each block's features, coarsest first.
        features: a `FeatureSettings` as plain values; stored with the weights, so training and inference cannot differ.
        hidden_channels: of the projections and the inner layers.
        embedding_dim: of the embedding.
        num_foreground: prototypes a class.
        num_background: prototypes of the background, a class.
        norm_num_groups: groups of every GroupNorm.
    """

    @register_to_config
    def __init__(
        self,
        num_classes: int,
        in_channels: Sequence[int],
        features: dict[str, object],
        hidden_channels: int = 64,
        embedding_dim: int = 16,
        num_foreground: int = 1,
        num_background: int = 6,
        norm_num_groups: int = 8,
    ) -> None:
        super().__init__()
        self.projections = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(1, channels), nn.Conv2d(channels, hidden_channels, 1)) for channels in in_channels
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(hidden_channels, hidden_channels, 3, padding=1), nn.GroupNorm(norm_num_groups, hidden_channels), nn.SiLU()
            )
            for _ in range(2)
        )
        self.conv_out = nn.Conv2d(hidden_channels, embedding_dim, 3, padding=1)
        self.register_buffer("foreground", F.normalize(torch.randn(num_classes, num_foreground, embedding_dim), dim=-1))
        self.register_buffer("background", F.normalize(torch.randn(num_classes, num_background, embedding_dim), dim=-1))
        self.register_buffer("threshold", torch.zeros(num_classes))
        self.register_buffer("spread", torch.ones(num_classes))

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """`(B, embedding_dim, h, w)` unit-length embedding at the resolution of the finest block.

        Args:
            features: one `(B, c, h, w)` tensor a block, coarsest first, as `extract_features` gives them.
        """
        size = features[-1].shape[2:]
        projected = [layer(block) for layer, block in zip(self.projections, features, strict=True)]
        hidden = torch.stack([F.interpolate(block, size=size, mode="bilinear", align_corners=False) for block in projected]).sum(dim=0)
        for layer in self.blocks:
            hidden = layer(hidden)
        return F.normalize(self.conv_out(hidden).float(), dim=1)

    def margin(self, embedding: torch.Tensor, class_index: int) -> torch.Tensor:
        """`(B, h, w)` largest cosine to the class's prototypes minus the largest to the background's.

        Args:
            embedding: `(B, embedding_dim, h, w)`, unit length.
            class_index: the class.
        """
        near, far = (
            torch.einsum("bdhw,kd->bkhw", embedding, prototypes[class_index]).amax(dim=1)
            for prototypes in (self.foreground, self.background)
        )
        return near - far

    def probability(self, embedding: torch.Tensor, class_index: int) -> torch.Tensor:
        """`(B, h, w)` in (0, 1): the margin against the threshold that the training seeds set, 0.5 at the threshold."""
        return torch.sigmoid((self.margin(embedding, class_index) - self.threshold[class_index]) / self.spread[class_index])

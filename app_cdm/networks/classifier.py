"""A classifier of clean and noised slices: guidance, gradient maps, activation maps and the slice gate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d_blocks import DownBlock2D
from torch import nn


class NoiseConditionalClassifier(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """log-odds of each class in `x_t`, from the downward half of a diffusion U-Net.

    Every place of the last stage has its own log-odds; they are pooled by a log-mean-exp, so that a small lesion
    suffices for a positive slice (multiple-instance learning).

    Args:
        num_classes: number of classes C, not exclusive.
        block_out_channels: channels of the stages, each half the resolution of the one before.
        layers_per_block: residual blocks a stage.
        norm_num_groups: groups of every GroupNorm.
        pool_sharpness: r of `log(mean(exp(r a))) / r`; 0 approaches the mean, large values the maximum.
        dropout: of the last features, in training.
    """

    @register_to_config
    def __init__(
        self,
        num_classes: int,
        block_out_channels: Sequence[int],
        layers_per_block: int = 1,
        norm_num_groups: int = 16,
        pool_sharpness: float = 2.0,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        first = block_out_channels[0]
        self.time_proj = Timesteps(first, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(first, first * 4)
        self.conv_in = nn.Conv2d(1, first, 5, stride=2, padding=2)
        channels = [first, *block_out_channels]
        self.down_blocks = nn.ModuleList(
            DownBlock2D(
                in_channels=before,
                out_channels=after,
                temb_channels=first * 4,
                num_layers=layers_per_block,
                resnet_groups=norm_num_groups,
                add_downsample=level < len(block_out_channels) - 1,
                resnet_eps=1e-5,
            )
            for level, (before, after) in enumerate(zip(channels, channels[1:], strict=False))
        )
        self.norm_out = nn.GroupNorm(norm_num_groups, channels[-1])
        self.conv_out = nn.Conv2d(channels[-1], num_classes, 1)

    def train(self, mode: bool = True) -> NoiseConditionalClassifier:
        """As for any module, but for the blocks: they have no dropout, and diffusers' copy their input to another layout in training."""
        super().train(mode)
        self.down_blocks.eval()
        return self

    def draw_dropout(self, count: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Factors of the last features of some slices in training: 0 with the probability `dropout`, else what keeps their mean.

        Args:
            count: number of slices B.
            generator: on the CPU; torch's global one where not given.

        Returns:
            `(B, c, 1, 1)`; a channel is dropped as a whole.
        """
        kept = 1 - self.config.dropout
        return (torch.rand(count, self.conv_out.in_channels, 1, 1, generator=generator) < kept) / kept

    def forward_features(
        self, sample: torch.Tensor, timesteps: torch.Tensor, dropout: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Log-odds and the output of every stage before its downsampling.

        Args:
            sample: `(B, 1, H, W)` slices, clean (timestep 0) or noised.
            timesteps: `(B,)` int64.
            dropout: of `draw_dropout`, which is called where it is not given; out of training there is none.

        Returns:
            `(B, C)` log-odds, and one `(B, c, h, w)` tensor a stage.
        """
        embedding = self.time_embedding(self.time_proj(timesteps).to(sample.dtype))
        hidden = self.conv_in(sample)
        stages = []
        for block in self.down_blocks:
            hidden, outputs = block(hidden, embedding)
            stages.append(outputs[self.config.layers_per_block - 1])
        hidden = F.silu(self.norm_out(hidden))
        if self.training:
            hidden = hidden * (self.draw_dropout(len(hidden)) if dropout is None else dropout).to(hidden)
        places = self.conv_out(hidden).float().flatten(2)
        sharpness = self.config.pool_sharpness
        pooled = (torch.logsumexp(sharpness * places, dim=2) - torch.log(torch.tensor(float(places.shape[2])))) / sharpness
        return pooled, stages

    def forward(self, sample: torch.Tensor, timesteps: torch.Tensor, dropout: torch.Tensor | None = None) -> torch.Tensor:
        """`(B, C)` log-odds of each class; see `forward_features`."""
        return self.forward_features(sample, timesteps, dropout)[0]

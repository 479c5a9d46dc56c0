"""The student: a small U-Net that gives a mask in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from monai.networks.blocks.activation import Swish
from monai.networks.nets.unet import UNet
from torch import nn

HEAD_CHANNELS = 16
NORM_GROUPS = 8


class StudentNetwork(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """log-odds of each class in each pixel, from a slice and its neighbours.

    MONAI's `UNet` ends in as many channels as it is told, its last stage at full resolution included; it is told `HEAD_CHANNELS`, and a 1x1
    convolution follows. Its norm is GroupNorm: averaged weights (EMA) do not fit the running statistics of a BatchNorm.

    Args:
        num_classes: number of classes C, not exclusive.
        num_neighbours: slices seen on either side along the slicing axis.
        channels: of the U-Net's levels, each half the resolution of the one before; multiples of `NORM_GROUPS`.
        num_res_units: residual units a level.
        dropout: in training.
    """

    @register_to_config
    def __init__(
        self,
        num_classes: int,
        num_neighbours: int = 1,
        channels: Sequence[int] = (24, 48, 96, 160),
        num_res_units: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        body = UNet(
            spatial_dims=2,
            in_channels=2 * num_neighbours + 1,
            out_channels=HEAD_CHANNELS,
            channels=tuple(channels),
            strides=(2,) * (len(channels) - 1),
            num_res_units=num_res_units,
            norm=("GROUP", {"num_groups": NORM_GROUPS}),
            act=("SWISH", {}),
            dropout=dropout,
        )
        for module in list(body.modules()):
            for name, child in module.named_children():
                if isinstance(child, Swish):  # the same function in one kernel
                    setattr(module, name, nn.SiLU())
        self.net: nn.Module = nn.Sequential(body, nn.SiLU(), nn.Conv2d(HEAD_CHANNELS, num_classes, 1))

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        """`(B, C, H, W)` log-odds.

        Args:
            sample: `(B, 2 n + 1, H, W)` slices in [-1, 1], in the order of the volume; the slice in question is the middle one.
        """
        return self.net(sample).float()


def with_neighbours(slices: torch.Tensor, indices: torch.Tensor, volume_index: torch.Tensor, num_neighbours: int) -> torch.Tensor:
    """Slices with those before and after them as channels; past the ends of a volume its last slice is repeated.

    Args:
        slices: `(N, 1, H, W)`, the volumes one after the other, each in order.
        indices: `(B,)` int64, the slices wanted.
        volume_index: `(N,)` int64, which volume a slice belongs to.
        num_neighbours: n.

    Returns:
        `(B, 2 n + 1, H, W)`.
    """
    channels = []
    for offset in range(-num_neighbours, num_neighbours + 1):
        near = indices.clone()
        for _ in range(abs(offset)):
            step = (near + (1 if offset > 0 else -1)).clamp(0, len(slices) - 1)
            near = torch.where(volume_index[step] == volume_index[indices], step, near)
        channels.append(slices[near, 0])
    return torch.stack(channels, dim=1)

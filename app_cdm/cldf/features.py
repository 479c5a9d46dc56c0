"""Pixel features of the frozen diffusion model: activations of its decoder blocks on noised slices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from diffusers import UNet2DModel

from app_cdm.config import Settings, SettingsError, ranged
from app_cdm.diffusion.process import find_timestep
from app_cdm.saliency.base import SaliencyInputs, SaliencyModel, class_weights, draw_noise

MAX_EVALUATIONS = 3
NUM_BLOCKS = 3


@dataclass(frozen=True)
class FeatureSettings(Settings):
    """Which activations are the features of a pixel.

    Attributes:
        null_levels: sigma of the slices that are shown with the null condition; no label is needed for them.
        contrast_levels: sigma of the slices that are shown both as present and as absent; the feature is the difference.
        blocks: decoder blocks of the U-Net, 0 the coarsest; empty for the last three before full resolution.
        seed: of the noise, one draw a slice for all levels.
    """

    null_levels: tuple[float, ...] = ranged((0.15, 0.3, 0.45), 0.02, 0.995)
    contrast_levels: tuple[float, ...] = ranged((), 0.02, 0.995)
    blocks: tuple[int, ...] = ranged((), 0, 16)
    seed: int = ranged(0, 0, 2**31 - 1)

    def check(self) -> None:
        if not 1 <= self.num_evaluations <= MAX_EVALUATIONS:
            levels = f"null_levels = {self.null_levels} and contrast_levels = {self.contrast_levels}"
            raise SettingsError(
                f"FeatureSettings: {levels} need {self.num_evaluations} evaluations a slice (a contrast level needs two): "
                f"must be 1 to {MAX_EVALUATIONS}"
            )
        if list(self.blocks) != sorted(set(self.blocks)):
            raise SettingsError(f"FeatureSettings.blocks = {self.blocks}: must be distinct and in ascending order")

    @property
    def num_evaluations(self) -> int:
        """U-Net evaluations a slice."""
        return len(self.null_levels) + 2 * len(self.contrast_levels)


def blocks_of(unet: UNet2DModel, patch_size: int, blocks: Sequence[int] = ()) -> tuple[int, ...]:
    """The decoder blocks whose activations are used: those asked for, or the last three that are coarser than pixels.

    Args:
        unet: the U-Net.
        patch_size: pixels along a side of what is one element of its input.
        blocks: those asked for; may be empty.

    Raises:
        ValueError: the U-Net has no such block.
    """
    count = len(unet.up_blocks)
    if blocks and blocks[-1] >= count:
        raise ValueError(f"FeatureSettings.blocks = {tuple(blocks)}: this U-Net has {count} decoder blocks")
    coarse = [block for block in range(count) if patch_size * 2 ** (count - 1 - block) > 1]
    return tuple(blocks) or tuple(coarse[-NUM_BLOCKS:]) or (0,)


def extract_features(model: SaliencyModel, inputs: SaliencyInputs, settings: FeatureSettings) -> list[torch.Tensor]:
    """Features of S slices, in one call of the U-Net.

    The noise of a slice is the same at every level, so that levels differ by scale alone. The forward pass ends with
    the last block that is asked for.

    Args:
        model: the networks.
        inputs: S slices and the class; the class matters for `contrast_levels` alone.
        settings: levels and blocks.

    Returns:
        One `(S, v * c, h, w)` float32 tensor a block, coarsest first; v = number of levels of both kinds.

    Raises:
        ValueError: the U-Net has no such block.
    """
    blocks = blocks_of(model.unet, model.patch_size, settings.blocks)
    levels = [*settings.null_levels, *settings.contrast_levels, *settings.contrast_levels]
    presences = [None] * len(settings.null_levels) + [1.0] * len(settings.contrast_levels) + [0.0] * len(settings.contrast_levels)
    count, slices = len(inputs.slice_indices), inputs.slices.to(model.device)
    noise = draw_noise(inputs, settings.seed, stream=0).to(model.device)
    timesteps = torch.tensor([find_timestep(model.scheduler, level) for level in levels], device=model.device).repeat_interleave(count)
    samples = model.scheduler.add_noise(slices.repeat(len(levels), 1, 1, 1), noise.repeat(len(levels), 1, 1, 1), timesteps)
    weights = torch.cat([class_weights(model, inputs, presence) for presence in presences])
    embedding = model.embed(weights, inputs.positions.repeat(len(levels)))
    with torch.no_grad(), _recorded(model.unet, blocks) as recorded, suppress(_LastBlockReached):
        model.model_output(samples, timesteps, embedding)
    return [_by_view(recorded[block], count, settings) for block in blocks]


def _by_view(activation: torch.Tensor, count: int, settings: FeatureSettings) -> torch.Tensor:
    """`(S, v * c, h, w)` from the batch of one block: null views as they are, contrast views as differences."""
    views = list(activation.float().split(count))
    num_null, num_contrast = len(settings.null_levels), len(settings.contrast_levels)
    present, absent = views[num_null : num_null + num_contrast], views[num_null + num_contrast :]
    return torch.cat([*views[:num_null], *(one - other for one, other in zip(present, absent, strict=True))], dim=1)


class _LastBlockReached(Exception):  # noqa: N818 - no error N818:
    """Ends a forward pass whose remaining blocks nobody needs."""


@contextmanager
def _recorded(unet: UNet2DModel, blocks: tuple[int, ...]) -> Iterator[dict[int, torch.Tensor]]:
    """Records the output of each block before its upsampling, and ends the pass after the last one."""
    recorded: dict[int, torch.Tensor] = {}
    handles = []

    def record(block: int, output: torch.Tensor) -> None:
        recorded[block] = output.detach()
        if block == blocks[-1]:
            raise _LastBlockReached

    for block in blocks:
        up_block = unet.up_blocks[block]
        layers = getattr(up_block, "attentions", None) or up_block.resnets
        handles.append(layers[-1].register_forward_hook(lambda _module, _inputs, output, block=block: record(block, output)))
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()

"""Sizes of the networks: from a laptop's CPU to the published one."""

from __future__ import annotations

import math
from dataclasses import dataclass

from diffusers import DDPMScheduler, UNet2DModel

from app_cdm.config import Settings, SettingsError, ranged
from app_cdm.networks.classifier import NoiseConditionalClassifier
from app_cdm.networks.condition import ConditionEmbedding

ATTENTION_HEAD_DIM = 32


@dataclass(frozen=True)
class NetworkSettings(Settings):
    """Size of one model.

    Attributes:
        image_size: side of the slice in pixels.
        patch_size: space-to-depth factor; the U-Net sees `patch_size ** 2` channels on a grid that much coarser.
        block_out_channels: U-Net channels a level.
        layers_per_block: residual blocks a level.
        attention_levels: number of deepest levels with self-attention.
        norm_num_groups: groups of every GroupNorm.
        classifier_channels: channels of the classifier's stages; the stem halves the resolution once.
    """

    image_size: int = ranged(64, 16, 1024)
    patch_size: int = ranged(2, 1, 8)
    block_out_channels: tuple[int, ...] = (64, 96, 128)
    layers_per_block: int = ranged(1, 1, 8)
    attention_levels: int = ranged(1, 0, 4)
    norm_num_groups: int = ranged(16, 1, 64)
    classifier_channels: tuple[int, ...] = (48, 96, 160)

    def check(self) -> None:
        if not self.block_out_channels or not self.classifier_channels or min(*self.block_out_channels, *self.classifier_channels) < 1:
            raise SettingsError("NetworkSettings: block_out_channels and classifier_channels must name at least one positive number each")
        reduction = self.patch_size * 2 ** (len(self.block_out_channels) - 1)
        if self.image_size % reduction:
            raise SettingsError(f"NetworkSettings.image_size = {self.image_size}: must be a multiple of {reduction}")
        for channels in (*self.block_out_channels, *self.classifier_channels):
            if channels % self.norm_num_groups:
                raise SettingsError(f"NetworkSettings: {channels} channels are not a multiple of norm_num_groups = {self.norm_num_groups}")
        # The middle block of the U-Net attends in any case.
        for channels in self.block_out_channels[-max(1, self.attention_levels) :]:
            if channels % ATTENTION_HEAD_DIM:
                raise SettingsError(
                    f"NetworkSettings: {channels} channels of a level with attention are not a multiple of {ATTENTION_HEAD_DIM}"
                )


PRESETS = {
    "tiny": NetworkSettings(),
    "base": NetworkSettings(128, 2, (64, 128, 192, 256), 2, 2, 32, (64, 128, 192, 256)),
    "paper": NetworkSettings(224, 1, (128, 128, 256, 256, 512, 512), 3, 2, 32, (64, 128, 256, 512)),
}


def build_unet(settings: NetworkSettings) -> UNet2DModel:
    """The denoising U-Net; its class embedding is the identity, so that conditions can be blended."""
    depth = len(settings.block_out_channels)
    attends = [level >= depth - settings.attention_levels for level in range(depth)]
    channels = settings.patch_size**2
    return UNet2DModel(
        sample_size=settings.image_size // settings.patch_size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=settings.block_out_channels,
        layers_per_block=settings.layers_per_block,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        attention_head_dim=ATTENTION_HEAD_DIM,
        norm_num_groups=settings.norm_num_groups,
        class_embed_type="identity",
    )


def build_condition_embedding(settings: NetworkSettings, num_classes: int) -> ConditionEmbedding:
    """The embedding of tags and slice position that is added to the U-Net's timestep embedding."""
    return ConditionEmbedding(num_classes=num_classes, embedding_dim=settings.block_out_channels[0] * 4)


def build_classifier(settings: NetworkSettings, num_classes: int) -> NoiseConditionalClassifier:
    """The classifier of clean and noised slices."""
    return NoiseConditionalClassifier(num_classes, settings.classifier_channels, settings.layers_per_block, settings.norm_num_groups)


def sizes_of(unet: UNet2DModel, classifier: NoiseConditionalClassifier) -> NetworkSettings:
    """The settings that `build_unet` and `build_classifier` made these networks from.

    Raises:
        SettingsError: no settings give networks like these.
    """
    patch_size = math.isqrt(unet.config.in_channels)
    return NetworkSettings(
        image_size=unet.config.sample_size * patch_size,
        patch_size=patch_size,
        block_out_channels=tuple(unet.config.block_out_channels),
        layers_per_block=unet.config.layers_per_block,
        attention_levels=sum(name.startswith("Attn") for name in unet.config.down_block_types),
        norm_num_groups=unet.config.norm_num_groups,
        classifier_channels=tuple(classifier.config.block_out_channels),
    )


def build_scheduler() -> DDPMScheduler:
    """Cosine noise schedule of 1000 steps, v-prediction; training and inference both read it from the saved model."""
    return DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False)

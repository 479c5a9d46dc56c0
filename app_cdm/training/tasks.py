"""The two networks' losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel
from torch import nn

from app_cdm.data.augmentation import augment
from app_cdm.data.dataset import BalancedSampler, TaggedSlices
from app_cdm.data.tags import UNKNOWN
from app_cdm.diffusion.process import find_timestep, patchify
from app_cdm.networks.classifier import NoiseConditionalClassifier
from app_cdm.networks.condition import ConditionEmbedding, class_weights_from_states
from app_cdm.training.bags import bag_loss
from app_cdm.training.loop import TrainingTask
from app_cdm.training.settings import TrainSettings


class ConditionalDenoiser(nn.Module):
    """U-Net and condition embedding trained as one."""

    def __init__(self, unet: UNet2DModel, condition_embedding: ConditionEmbedding) -> None:
        super().__init__()
        self.unet, self.condition_embedding = unet, condition_embedding

    def train(self, mode: bool = True) -> ConditionalDenoiser:
        """As for any module, but for the U-Net: it has no dropout, and diffusers' blocks copy their input to another layout in training."""
        super().train(mode)
        self.unet.eval()
        return self


class DiffusionTask(TrainingTask):
    """Denoising score matching with v-prediction (Salimans & Ho 2022), conditioned on tags and slice position."""

    name = "diffusion"

    def __init__(self, denoiser: ConditionalDenoiser, scheduler: DDPMScheduler, data: TaggedSlices, settings: TrainSettings) -> None:
        denoiser.unet.to(memory_format=torch.channels_last)
        self.module: ConditionalDenoiser = denoiser
        self.scheduler, self.data, self.settings = scheduler, data, settings
        self.max_timestep = find_timestep(scheduler, settings.max_noise_level)
        self.focus = tuple(find_timestep(scheduler, level) for level in settings.focus_noise_levels)

    def loss(self, generator: torch.Generator, batch_size: int) -> torch.Tensor:
        slices, states, positions = draw_batch(self.data, self.settings, generator, batch_size)
        timesteps = torch.randint(0, self.max_timestep + 1, (batch_size,), generator=generator)
        focused = torch.randint(self.focus[0], self.focus[1] + 1, (batch_size,), generator=generator)
        timesteps = torch.where(torch.rand(batch_size, generator=generator) < self.settings.focus_probability, focused, timesteps)
        dropped = torch.rand(states.shape, generator=generator) < self.settings.label_dropout
        states = torch.where(dropped, UNKNOWN, states)
        hidden = torch.rand(batch_size, generator=generator) < self.settings.position_dropout
        positions = torch.where(hidden, torch.nan, positions)
        original_samples = patchify(slices, self.settings.network.patch_size)
        noise = torch.randn(original_samples.shape, generator=generator)
        original_samples, noise, timesteps, states, positions = self.team.own(original_samples, noise, timesteps, states, positions)
        device = next(self.module.parameters()).device
        original_samples, noise, timesteps = original_samples.to(device), noise.to(device), timesteps.to(device)
        samples = self.scheduler.add_noise(original_samples, noise, timesteps)
        embedding = self.module.condition_embedding(class_weights_from_states(states).to(device), positions.to(device))
        output = self.module.unet(samples.contiguous(memory_format=torch.channels_last), timesteps, embedding).sample
        loss = F.mse_loss(output.float(), self.scheduler.get_velocity(original_samples, noise, timesteps))
        return self.team.sum(loss * (len(noise) / batch_size))


class ClassifierTask(TrainingTask):
    """Binary cross-entropy a class on clean and noised slices; unknown tags do not count, "present somewhere" by `bag_loss`."""

    name = "classifier"

    def __init__(
        self, classifier: NoiseConditionalClassifier, scheduler: DDPMScheduler, data: TaggedSlices, settings: TrainSettings
    ) -> None:
        classifier.to(memory_format=torch.channels_last)
        self.module: NoiseConditionalClassifier = classifier
        self.scheduler, self.data, self.settings = scheduler, data, settings
        self.max_timestep = find_timestep(scheduler, settings.max_noise_level)

    def loss(self, generator: torch.Generator, batch_size: int) -> torch.Tensor:
        slices, states, _ = draw_batch(self.data, self.settings, generator, batch_size)
        timesteps = (torch.rand(batch_size, generator=generator).square() * self.max_timestep).long()
        is_clean = torch.rand(batch_size, generator=generator) < self.settings.clean_probability
        timesteps = torch.where(is_clean, 0, timesteps)
        noise = torch.randn(slices.shape, generator=generator)
        dropout = self.module.draw_dropout(batch_size, generator)
        slices, noise, timesteps, is_clean, states, dropout = self.team.own(slices, noise, timesteps, is_clean, states, dropout)
        samples = torch.where(is_clean[:, None, None, None], slices, self.scheduler.add_noise(slices, noise, timesteps))
        device = next(self.module.parameters()).device
        logits = self.module(samples.to(device).contiguous(memory_format=torch.channels_last), timesteps.to(device), dropout)
        target, known = states.to(device).float(), (states != UNKNOWN).to(device)
        losses = F.binary_cross_entropy_with_logits(logits, target.clamp_min(0), reduction="none")
        loss = self.team.sum(losses[known].sum()) / self.team.sum(known.sum()).clamp_min(1)
        if not len(self.data.bags):
            return loss
        # A bag is one volume and is not shared: every process computes it, and a part of its gradient counts.
        of_bag = bag_loss(self.module, self.data, self.settings.augmentation, self.settings.bag_sharpness, generator)
        return loss + self.settings.bag_weight * self.team.sum(of_bag / self.team.size)


def draw_batch(
    data: TaggedSlices, settings: TrainSettings, generator: torch.Generator, batch_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A balanced, augmented batch: slices, states and positions."""
    index = BalancedSampler(data, generator).draw(batch_size)
    return augment(data.slices[index], settings.augmentation, generator), data.states[index], data.positions[index]

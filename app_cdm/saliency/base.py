"""What every saliency method is given, and the one place that runs the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from diffusers import DDPMScheduler, UNet2DModel

from app_cdm.config import SaliencySettings
from app_cdm.data.body import find_body
from app_cdm.diffusion.process import find_timestep, patchify, predict_original_sample, slice_generator, unpatchify
from app_cdm.networks.classifier import NoiseConditionalClassifier
from app_cdm.networks.condition import ABSENT_INDEX, NULL_INDEX, ConditionEmbedding


@dataclass
class EvaluationCounter:
    """Counts U-Net evaluations: one an image in a forward call; a forward-mode derivative counts as two."""

    images: int = 0


@dataclass(frozen=True)
class SaliencyModel:
    """The networks of a trained model, and a counter of their use.

    Attributes:
        unet: the denoising network.
        condition_embedding: tags and position to an embedding.
        classifier: of clean and noised slices.
        scheduler: the noise schedule of training.
        patch_size: space-to-depth factor of the U-Net.
        exclusive_classes: whether a slice holds one class at most.
        counter: incremented by every U-Net call.
    """

    unet: UNet2DModel
    condition_embedding: ConditionEmbedding
    classifier: NoiseConditionalClassifier
    scheduler: DDPMScheduler
    patch_size: int
    exclusive_classes: bool = False
    counter: EvaluationCounter = field(default_factory=EvaluationCounter)

    @property
    def device(self) -> torch.device:
        """Where the networks live."""
        return self.unet.device

    @property
    def num_classes(self) -> int:
        """Number of classes the model was trained for."""
        return int(self.condition_embedding.config.num_classes)

    def embed(self, class_weights: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Condition embedding of `(B, C, 3)` weights and `(B,)` positions."""
        return self.condition_embedding(class_weights.to(self.device), positions.to(self.device))

    def model_output(self, samples: torch.Tensor, timesteps: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """Raw network output for `(B, 1, H, W)` pixel-space samples, in pixel space and float32."""
        self.counter.images += samples.shape[0]
        patches = patchify(samples, self.patch_size)
        return unpatchify(self.unet(patches, timesteps, embedding).sample.float(), self.patch_size)

    def original_samples(self, samples: torch.Tensor, timesteps: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """Predicted clean slices `(B, 1, H, W)`, float32."""
        return predict_original_sample(self.scheduler, self.model_output(samples, timesteps, embedding), samples, timesteps)


@dataclass(frozen=True)
class SaliencyInputs:
    """Slices whose maps are wanted.

    Attributes:
        slices: `(S, 1, H, W)` in [-1, 1].
        positions: `(S,)` along the slicing axis, NaN where unknown.
        slice_indices: index of each slice in its volume; seeds its noise.
        class_index: the class in question; for the others see `class_weights`.
    """

    slices: torch.Tensor
    positions: torch.Tensor
    slice_indices: tuple[int, ...]
    class_index: int

    @property
    def body(self) -> torch.Tensor:
        """`(S, H, W)` bool on the CPU, as the maps are; see `find_body`."""
        return torch.from_numpy(find_body(self.slices[:, 0].cpu().numpy()))

    def select(self, start: int, stop: int) -> SaliencyInputs:
        """A consecutive part."""
        return SaliencyInputs(self.slices[start:stop], self.positions[start:stop], self.slice_indices[start:stop], self.class_index)


SaliencyMethod = Callable[[SaliencyModel, SaliencyInputs, SaliencySettings], torch.Tensor]


def class_weights(model: SaliencyModel, inputs: SaliencyInputs, presence: float | None) -> torch.Tensor:
    """`(S, C, 3)` condition: the class present to this degree (None: null), every other class null.

    Where classes exclude each other the others are absent instead. To be null would let them in again: what tells present from absent would
    be what tells the class from the others, and not from a slice without any.
    """
    weights = torch.zeros(len(inputs.slice_indices), model.num_classes, 3)
    others_absent = model.exclusive_classes and presence is not None
    weights[:, :, ABSENT_INDEX if others_absent else NULL_INDEX] = 1.0
    if presence is not None:
        weights[:, inputs.class_index] = torch.tensor([1.0 - presence, presence, 0.0])
    return weights


def draw_noise(inputs: SaliencyInputs, seed: int, stream: int) -> torch.Tensor:
    """`(S, 1, H, W)` standard normal noise, each slice from its own stream."""
    shape = inputs.slices.shape[1:]
    return torch.stack([torch.randn(shape, generator=slice_generator(seed, index, stream)) for index in inputs.slice_indices])


def chunks(inputs: SaliencyInputs, images_per_slice: int, batch_images: int) -> Iterator[SaliencyInputs]:
    """Parts of the slices whose images fit one batch."""
    count = max(1, batch_images // images_per_slice)
    for start in range(0, len(inputs.slice_indices), count):
        yield inputs.select(start, start + count)


def start_timestep(model: SaliencyModel, noise_level: float, num_steps: int, setting: str) -> int:
    """Timestep at which denoising of so many steps starts.

    Args:
        model: tells the schedule.
        noise_level: sigma of the noised slices.
        num_steps: denoising steps from there.
        setting: name of the setting that holds `num_steps`, for the error.

    Raises:
        ValueError: there are more steps than timesteps below the noise level.
    """
    timestep = find_timestep(model.scheduler, noise_level)
    if num_steps > timestep:
        raise ValueError(
            f"{setting} = {num_steps}: noise level {noise_level} is only {timestep} steps from the clean image; "
            "take fewer steps or more noise"
        )
    return timestep


def signed(maps: torch.Tensor, settings: SaliencySettings) -> torch.Tensor:
    """Turns differences of predicted images into "more target": see `SaliencySettings.sign`."""
    return {"positive": maps, "negative": -maps, "magnitude": maps.abs()}[settings.sign]

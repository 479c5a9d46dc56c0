"""What the training of a student is told."""

from __future__ import annotations

from dataclasses import dataclass, field

from app_cdm.config import Settings, ranged
from app_cdm.data.augmentation import AugmentationSettings
from app_cdm.training.optimization import OptimizerSettings

STRONG = AugmentationSettings(0.5, 20.0, 0.2, 0.1, 0.4, 0.2)


@dataclass(frozen=True)
class StudentSettings(Settings):
    """A student and its self-training.

    Attributes:
        channels: of the U-Net's levels.
        num_res_units: residual units a level.
        num_neighbours: slices seen on either side.
        dropout: in training.
        optimizer: of each round.
        augmentation: random geometry and contrast.
        noise: standard deviation of the noise added to the image, at most.
        num_rounds: rounds; each learns from the diffusion map, CLDF and the round before it.
        ignored_band: pixels whose probability is closer to one half than this are not learned from.
        negative_weight: weight of the pixels of slices without the class; the gate keeps such slices empty in any case.
        dice_weight: weight of the soft Dice loss beside cross-entropy.
        slice_smoothing: of the diffusion map along the slices, in slices.
    """

    channels: tuple[int, ...] = ranged((32, 64, 128, 192), 8, 2048)
    num_res_units: int = ranged(1, 0, 4)
    num_neighbours: int = ranged(1, 0, 4)
    dropout: float = ranged(0.1, 0.0, 0.9)
    optimizer: OptimizerSettings = field(
        default_factory=lambda: OptimizerSettings(
            num_steps=1000, learning_rate=1e-3, num_warmup_steps=50, ema_decay=0.99, mixed_precision=False
        )
    )
    augmentation: AugmentationSettings = STRONG
    noise: float = ranged(0.1, 0.0, 1.0)
    num_rounds: int = ranged(2, 1, 10)
    ignored_band: float = ranged(0.1, 0.0, 0.5)
    negative_weight: float = ranged(0.3, 0.0, 1.0)
    dice_weight: float = ranged(1.0, 0.0, 10.0)
    slice_smoothing: float = ranged(1.0, 0.0, 10.0)

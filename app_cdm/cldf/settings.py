"""What the training of a pixel decoder is told."""

from __future__ import annotations

from dataclasses import dataclass, field

from app_cdm.cldf.features import FeatureSettings
from app_cdm.cldf.seeds import SeedSettings
from app_cdm.config import Settings, ranged
from app_cdm.training.optimization import OptimizerSettings


@dataclass(frozen=True)
class CLDFSettings(Settings):
    """A pixel decoder, its seeds and its loss; every number that Zeng et al. 2025 leave open.

    Attributes:
        features: which activations are the features.
        seeds: when a pixel is a seed.
        num_rounds: rounds; the seeds of the later ones are the pixels that the diffusion map and the decoder before agree on.
        ignored_band: pixels whose agreed probability is closer to one half than this are no seeds of later rounds.
        random_features: features of an untrained U-Net, as a control.
        hidden_channels: of the decoder's inner layers.
        embedding_dim: of a pixel's embedding.
        num_foreground: prototypes a class.
        num_background: prototypes of the background, a class.
        temperature: of both losses.
        num_anchors: pixels of either kind a batch.
        hard_share: share of hard ones.
        prototype_weight: weight of the pixel-to-prototype loss beside pixel InfoNCE.
        prototype_decay: of the prototypes' moving average.
        negatives_per_positive: slices without the class that are cached, for each slice with it.
        max_cache_gib: largest size of one class's cached features on disk.
        optimizer: optimisation of the decoder.
    """

    features: FeatureSettings = field(default_factory=FeatureSettings)
    seeds: SeedSettings = field(default_factory=SeedSettings)
    num_rounds: int = ranged(2, 1, 5)
    ignored_band: float = ranged(0.2, 0.0, 0.5)
    random_features: bool = False
    hidden_channels: int = ranged(64, 8, 1024)
    embedding_dim: int = ranged(16, 2, 256)
    num_foreground: int = ranged(1, 1, 32)
    num_background: int = ranged(6, 1, 64)
    temperature: float = ranged(0.1, 0.01, 10.0)
    num_anchors: int = ranged(1024, 2, 100_000)
    hard_share: float = ranged(0.5, 0.0, 1.0)
    prototype_weight: float = ranged(1.0, 0.0, 10.0)
    prototype_decay: float = ranged(0.99, 0.0, 1.0)
    negatives_per_positive: float = ranged(0.7, 0.1, 10.0)
    max_cache_gib: float = ranged(8.0, 0.01, 10_000.0)
    optimizer: OptimizerSettings = field(
        default_factory=lambda: OptimizerSettings(
            num_steps=600, batch_size=16, learning_rate=1e-3, num_warmup_steps=50, ema_decay=0.99, mixed_precision=False
        )
    )

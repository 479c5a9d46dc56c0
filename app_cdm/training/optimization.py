"""How one network is optimised."""

from __future__ import annotations

from dataclasses import dataclass

from app_cdm.config import Settings, ranged


@dataclass(frozen=True)
class OptimizerSettings(Settings):
    """Optimisation of one network.

    Attributes:
        num_steps: optimizer steps.
        batch_size: slices a step.
        learning_rate: of AdamW after warm-up.
        num_warmup_steps: linear warm-up.
        weight_decay: of AdamW.
        max_grad_norm: gradient clipping.
        ema_decay: largest decay of the exponential moving average, which is what inference uses.
        checkpoint_every_s: seconds between checkpoints.
        mixed_precision: run the forward pass in bfloat16, where the device computes it in hardware.
    """

    num_steps: int = ranged(6000, 1, 10_000_000)
    batch_size: int = ranged(32, 2, 4096)
    learning_rate: float = ranged(3e-4, 1e-8, 1.0)
    num_warmup_steps: int = ranged(200, 0, 100_000)
    weight_decay: float = ranged(0.01, 0.0, 1.0)
    max_grad_norm: float = ranged(1.0, 0.01, 100.0)
    ema_decay: float = ranged(0.999, 0.0, 0.99999)
    checkpoint_every_s: float = ranged(45.0, 0.0, 3600.0)
    mixed_precision: bool = True

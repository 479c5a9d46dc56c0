"""Slices with or without a bright blob: a target that tags alone can teach in seconds."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from app_cdm.config import PreprocessSettings
from app_cdm.data.augmentation import AugmentationSettings
from app_cdm.data.dataset import TaggedSlices
from app_cdm.networks.presets import NetworkSettings
from app_cdm.training.optimization import OptimizerSettings
from app_cdm.training.settings import TrainSettings

NETWORK = NetworkSettings(16, 2, (16, 32), 1, 1, 8, (16, 32))


def tiny_settings(steps: int = 12, **changes: object) -> TrainSettings:
    """A run of a few steps, still within its warm-up halfway."""
    optimizer = OptimizerSettings(num_steps=steps, batch_size=4, num_warmup_steps=8, checkpoint_every_s=3600.0, learning_rate=1e-3)
    return TrainSettings(
        network=NETWORK,
        preprocess=PreprocessSettings(image_size=16),
        augmentation=AugmentationSettings(rotation_degrees=5.0),
        classifier=optimizer,
        diffusion=optimizer,
        seed=3,
    ).replace(**changes)


def blob_volume(generator: np.random.Generator, num_slices: int, present: range) -> tuple[np.ndarray, np.ndarray]:
    """`(20, 24, S)`: a noisy body with a bright blob on some slices, and where the blob is."""
    rows, columns = np.mgrid[0:20, 0:24]
    volume = np.where((rows - 10) ** 2 / 81 + (columns - 12) ** 2 / 121 < 1, 100.0, 0.0)[:, :, None].repeat(num_slices, axis=2)
    volume += np.where(volume > 0, generator.normal(0, 6, volume.shape), 0.0)
    row, column = generator.integers(6, 14), generator.integers(7, 17)
    blob = np.zeros_like(volume)
    blob[:, :, list(present)] = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 8.0)[:, :, None]
    return (volume + 120.0 * blob).astype(np.float32), (blob > 0.5).astype(np.uint8)


def write_blob_study(folder: Path, count: int = 8, num_slices: int = 8, seed: int = 0, split: str = "train") -> Path:
    """Writes `images/case_<i>.nii.gz` and `slices.csv`, and `masks/case_<i>_seg.nii.gz` if not for training; returns the table."""
    generator = np.random.default_rng(seed)
    for name in ("images",) if split == "train" else ("images", "masks"):
        (folder / name).mkdir(parents=True)
    rows = []
    for number in range(count):
        first = int(generator.integers(0, num_slices - 2))
        present = range(first, int(generator.integers(first + 2, num_slices + 1)))
        affine = np.diag([-1.0, 1.0, 5.0 if number % 2 else -5.0, 1.0])  # every other file is stacked upside down
        image, mask = blob_volume(generator, num_slices, present)
        nib.save(nib.Nifti1Image(image, affine), folder / f"images/case_{number}.nii.gz")
        if split != "train":
            nib.save(nib.Nifti1Image(mask, affine), folder / f"masks/case_{number}_seg.nii.gz")
        rows += [[f"case_{number}", index, split, int(index in present)] for index in range(num_slices)]
    table = folder / "slices.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["patient_id", "slice_index", "split", "has_blob"], *rows])
    return table


def blob_slices(count: int = 32, seed: int = 0) -> TaggedSlices:
    """The same in memory, without files: two classes, of which the second is partly unknown."""
    generator = torch.Generator().manual_seed(seed)
    slices = torch.rand(count, 1, 16, 16, generator=generator) * 0.4 - 0.8
    states = torch.stack([torch.arange(count) % 2, torch.arange(count) % 3 - 1], dim=1).to(torch.int8)
    slices[states[:, 0] == 1, :, 4:8, 5:9] = 0.9
    positions = torch.linspace(0, 1, count)
    return TaggedSlices(slices, states, positions, torch.zeros(count, dtype=torch.long), ("image",), ("blob", "other"))

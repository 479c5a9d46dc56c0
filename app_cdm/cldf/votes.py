"""The maps whose agreement makes seeds, of every slice that is tagged positive."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from app_cdm.cldf.seeds import SeedMaps, SeedSettings, find_seeds
from app_cdm.config import SaliencySettings
from app_cdm.data.body import find_body
from app_cdm.data.dataset import TaggedSlices
from app_cdm.data.tags import PRESENT
from app_cdm.saliency.base import SaliencyInputs, SaliencyModel, signed
from app_cdm.saliency.cam import layer_cam
from app_cdm.saliency.combine import smooth, unit_peak
from app_cdm.saliency.gradient import gradient_map
from app_cdm.saliency.parallel import level_differences

SLICES_PER_CALL = 16


@dataclass(frozen=True)
class Votes:
    """Maps of the M slices on which a class is tagged present, volume after volume.

    Attributes:
        index: `(M,)` int64, their places among all slices.
        cam: `(M, H, W)` LayerCAM, unit peak a slice.
        gradient: `(M, H, W)` gradient map of the noise-conditional classifier.
        levels: `(M, L, H, W)` differences of the diffusion model at each noise level, as they are.
    """

    index: torch.Tensor
    cam: torch.Tensor
    gradient: torch.Tensor
    levels: torch.Tensor

    def select(self, rows: torch.Tensor) -> Votes:
        """Those of some slices."""
        return Votes(self.index[rows], self.cam[rows], self.gradient[rows], self.levels[rows])


def collect_votes(
    model: SaliencyModel, inputs: SaliencyInputs, settings: SaliencySettings
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """LayerCAM, gradient map and differences by level of some slices, as `Votes` holds them.

    Args:
        model: the networks of the diffusion model.
        inputs: S slices and the class.
        settings: noise levels, draws, seed and batch size.
    """
    body = inputs.body
    with torch.no_grad():
        levels = level_differences(model, inputs, settings).transpose(0, 1)
    cam = unit_peak(layer_cam(model, inputs, settings.batch_images) * body)
    return cam, gradient_map(model, inputs, seed=settings.seed, batch_images=settings.batch_images), levels


def inputs_of(data: TaggedSlices, index: torch.Tensor, class_index: int) -> SaliencyInputs:
    """Slices as the saliency methods take them; each slice's noise follows its place in its volume."""
    first = torch.searchsorted(data.volume_index, data.volume_index[index])
    return SaliencyInputs(data.slices[index], data.positions[index], tuple((index - first).tolist()), class_index)


def thorough(settings: SaliencySettings) -> SaliencySettings:
    """The same with the draws and mirror images that votes are made of: they are made once, and what they teach stays."""
    defaults = SaliencySettings()
    return settings.replace(num_draws=defaults.num_draws, flip=defaults.flip)


def volume_saliency(
    levels: torch.Tensor,
    slices: torch.Tensor,
    settings: SaliencySettings,
    slice_smoothing: float,
    places: torch.Tensor | None = None,
) -> np.ndarray:
    """One diffusion map of the positive slices of a volume, comparable between them.

    Each noise level is divided by its standard deviation over all of them, so that a slice with much of the target
    keeps a larger map than one with little; then in-plane smoothing, and along slices that follow each other.

    Args:
        levels: `(S, L, H, W)` differences of one volume's positive slices, in order.
        slices: `(S, 1, H, W)` images.
        settings: `sign` and `smoothing_px` are used.
        slice_smoothing: standard deviation along the slices, in slices.
        places: `(S,)` which slices these are, rising; None where each follows the one before.

    Returns:
        `(S, H, W)` float32, at least 0, and 0 outside the body.
    """
    spread = levels.transpose(0, 1).flatten(1).std(dim=1).clamp_min(1e-12)[None, :, None, None]
    maps = smooth(signed(levels / spread, settings).mean(dim=1), settings.smoothing_px)
    body = torch.from_numpy(find_body(slices[:, 0].numpy()))
    maps = maps.clamp_min(0) * body
    if slice_smoothing <= 0:
        return np.asarray(maps.numpy())
    places = torch.arange(len(maps)) if places is None else places
    runs = np.split(maps.numpy(), np.flatnonzero(np.diff(places.numpy()) != 1) + 1)
    return np.concatenate([ndimage.gaussian_filter1d(run, slice_smoothing, axis=0, mode="nearest") for run in runs]) * body.numpy()


def seeds_of_class(data: TaggedSlices, class_index: int, votes: Votes, saliency: SaliencySettings, settings: SeedSettings) -> torch.Tensor:
    """Seeds of every slice on which a class is tagged present.

    Args:
        data: the tagged slices.
        class_index: the class.
        votes: its maps.
        saliency: as the votes were made.
        settings: the limits.

    Returns:
        `(M, H, W)` int8.

    Raises:
        ValueError: the votes are of other slices.
    """
    if not torch.equal(votes.index, torch.nonzero(data.states[:, class_index] == PRESENT)[:, 0]):
        raise ValueError("the votes were made for other tags; delete them and run the stage again")
    seeds = torch.full((len(votes.index), *data.slices.shape[2:]), -1, dtype=torch.int8)
    volumes = data.volume_index[votes.index]
    for volume in volumes.unique():
        rows = torch.nonzero(volumes == volume)[:, 0]
        slices = data.slices[votes.index[rows]]
        maps = volume_saliency(votes.levels[rows], slices, saliency, settings.slice_smoothing, votes.index[rows])
        voting = SeedMaps(votes.cam[rows].numpy(), votes.gradient[rows].numpy(), maps, find_body(slices[:, 0].numpy()))
        seeds[rows] = torch.from_numpy(find_seeds(voting, settings))
    return seeds

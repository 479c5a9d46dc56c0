"""What the student learns from: the diffusion map, the pixel decoder and, from the second round on, the student before."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from skimage.filters import threshold_otsu

from app_cdm.cldf.decode import decoder_maps
from app_cdm.cldf.votes import SLICES_PER_CALL, Votes, inputs_of, volume_saliency
from app_cdm.config import SaliencySettings
from app_cdm.data.body import find_body
from app_cdm.data.dataset import TaggedSlices
from app_cdm.networks.decoder import PixelDecoder
from app_cdm.networks.student import StudentNetwork, with_neighbours
from app_cdm.saliency.base import SaliencyModel
from app_cdm.segmentation.mask import LEAST_PEAK, raise_peaks
from app_cdm.segmentation.refinement import follow_image

Boundary = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def saliency_probabilities(data: TaggedSlices, votes: Votes, settings: SaliencySettings, slice_smoothing: float) -> torch.Tensor:
    """Diffusion maps of the positive slices as probabilities: one half at the volume's Otsu threshold, one from twice that on.

    Args:
        data: the tagged slices.
        votes: of M slices.
        settings: as the votes were made.
        slice_smoothing: see `volume_saliency`.

    Returns:
        `(M, H, W)` float32.
    """

    def of_volume(rows: torch.Tensor, slices: torch.Tensor) -> np.ndarray:
        maps = volume_saliency(votes.levels[rows], slices, settings, slice_smoothing, votes.index[rows])
        inside = maps[find_body(slices[:, 0].numpy())]
        has_contrast = inside.size and inside.max() > inside.min()
        return np.clip(maps / (2 * threshold_otsu(inside)), 0.0, 1.0) if has_contrast else np.zeros_like(maps)

    return _by_volume(data, votes.index, of_volume)


def decoder_probabilities(
    model: SaliencyModel, decoder: PixelDecoder, data: TaggedSlices, index: torch.Tensor, class_index: int
) -> torch.Tensor:
    """`(M, H, W)` probabilities of the pixel decoder on some slices."""
    parts = index.split(SLICES_PER_CALL)
    return torch.cat([decoder_maps(model, decoder, inputs_of(data, part, class_index)) for part in parts])


def student_probabilities(student: StudentNetwork, data: TaggedSlices, index: torch.Tensor, class_index: int) -> torch.Tensor:
    """`(M, H, W)` probabilities of a student on some slices, the mean of a slice and its mirror image."""
    found = []
    with torch.no_grad():
        for part in index.split(4 * SLICES_PER_CALL):
            samples = with_neighbours(data.slices, part, data.volume_index, student.config.num_neighbours).to(student.device)
            both = torch.sigmoid(student(torch.cat([samples, samples.flip(-1)])))[:, class_index]
            plain, mirrored = both.chunk(2)
            found.append(((plain + mirrored.flip(-1)) / 2).cpu())
    return torch.cat(found)


def teach(
    data: TaggedSlices,
    index: torch.Tensor,
    opinions: list[torch.Tensor],
    boundary: Boundary = follow_image,
) -> torch.Tensor:
    """The mean of several opinions, with boundaries that follow the image.

    Every slice is tagged positive, so every opinion is raised to a peak on it (`raise_peaks`): a student that is unsure whether there is
    anything would otherwise teach the next one to be less sure. Maps of different origin make different errors, so their plain
    mean is better than each; no weight is tuned.

    Args:
        data: the tagged slices.
        index: `(M,)` the positive slices of one class.
        opinions: `(M, H, W)` probabilities each.
        boundary: what makes them follow it, from the probabilities and slices of a volume and which slices these are.

    Returns:
        `(M, H, W)` float32 probabilities.
    """
    mean = torch.stack([torch.from_numpy(raise_peaks(opinion.numpy(), LEAST_PEAK)) for opinion in opinions]).mean(dim=0)

    def of_volume(rows: torch.Tensor, slices: torch.Tensor) -> np.ndarray:
        return boundary(mean[rows].numpy(), slices[:, 0].numpy(), index[rows].numpy())

    return _by_volume(data, index, of_volume)


def _by_volume(data: TaggedSlices, index: torch.Tensor, work: Callable[[torch.Tensor, torch.Tensor], np.ndarray]) -> torch.Tensor:
    """`(M, H, W)` results of `work(rows, slices)`, called once a volume with the places of its slices in `index`."""
    result = torch.zeros(len(index), *data.slices.shape[2:])
    volumes = data.volume_index[index]
    for volume in volumes.unique():
        rows = torch.nonzero(volumes == volume)[:, 0]
        result[rows] = torch.from_numpy(np.ascontiguousarray(work(rows, data.slices[index[rows]]), dtype=np.float32))
    return result

"""Where the maps of positive slices come from: the diffusion model, the pixel decoder or the student."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from app_cdm.cldf.decode import decoder_maps
from app_cdm.config import SegmentationSettings
from app_cdm.data.slices import SliceStack
from app_cdm.networks.decoder import PixelDecoder
from app_cdm.networks.student import StudentNetwork, with_neighbours
from app_cdm.saliency.base import SaliencyInputs, SaliencyModel
from app_cdm.saliency.combine import saliency_maps


class MapSource(Protocol):
    """Gives `(len(part), H, W)` maps in [0, 1] of some slices of one volume, for one class."""

    def __call__(self, class_index: int, part: np.ndarray) -> np.ndarray: ...


def map_source(
    model: SaliencyModel, decoder: PixelDecoder | None, student: StudentMaps | None, stack: SliceStack, settings: SegmentationSettings
) -> MapSource:
    """The source that `settings.method` names.

    Args:
        model: the networks of the diffusion model.
        decoder: the pixel decoder, if there is one.
        student: maps of the student, if there is one.
        stack: the slices of a volume.
        settings: method and, for `cdm_saliency`, the rest.

    Raises:
        ValueError: the model lacks what the method needs.
    """
    if settings.method == "cdm_saliency":
        return lambda class_index, part: saliency_maps(model, _inputs(stack, part, class_index), settings.saliency).numpy()
    if settings.method == "cldf" and decoder is not None:
        return lambda class_index, part: decoder_maps(model, decoder, _inputs(stack, part, class_index)).numpy()
    if settings.method == "student" and student is not None:
        return student
    raise ValueError(
        f"method = {settings.method!r}: this model has not been trained for it; train the stages it lacks, or choose another method"
    )


class StudentMaps:
    """Probabilities of the student; one forward pass a slice, for all classes at once.

    Args:
        student: the network.
        stack: the slices of a volume.
        batch_images: most slices in one call.
    """

    def __init__(self, student: StudentNetwork, stack: SliceStack, batch_images: int) -> None:
        self._student, self._slices, self._batch_images = student, stack.slices, batch_images
        self._found: dict[int, np.ndarray] = {}

    def __call__(self, class_index: int, part: np.ndarray) -> np.ndarray:
        missing = torch.tensor([int(index) for index in part if int(index) not in self._found], dtype=torch.long)
        one_volume = torch.zeros(len(self._slices), dtype=torch.long)
        for some in missing.split(self._batch_images) if len(missing) else ():
            samples = with_neighbours(self._slices, some, one_volume, self._student.config.num_neighbours)
            with torch.no_grad():
                probabilities = torch.sigmoid(self._student(samples.to(self._student.device))).cpu().numpy()
            self._found |= dict(zip(some.tolist(), probabilities, strict=True))
        return np.stack([self._found[int(index)][class_index] for index in part])


def slice_uncertainty(maps: np.ndarray) -> np.ndarray:
    """`(S,)` share of the target's pixels that are expected to be wrong: sum of min(p, 1 - p) over sum of p, at most 1.

    Args:
        maps: `(S, H, W)` probabilities; slices that the gate left out are 0 and so certain.
    """
    expected = np.minimum(maps, 1 - maps).sum(axis=(1, 2))
    return np.asarray(np.minimum(expected / np.maximum(maps.sum(axis=(1, 2)), 1.0), 1.0))


def _inputs(stack: SliceStack, part: np.ndarray, class_index: int) -> SaliencyInputs:
    return SaliencyInputs(stack.slices[part], stack.positions[part], tuple(int(index) for index in part), class_index)

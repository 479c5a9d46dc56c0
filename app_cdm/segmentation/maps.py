"""Where the maps of positive slices come from: the diffusion model, the pixel decoder or the student."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import Protocol

import numpy as np
import torch

from app_cdm.cldf.decode import decoder_maps, decoder_maps_of_classes, feature_settings
from app_cdm.config import SaliencySettings, SegmentationSettings
from app_cdm.data.slices import SliceStack
from app_cdm.networks.decoder import PixelDecoder
from app_cdm.networks.student import StudentNetwork, with_neighbours
from app_cdm.saliency.base import SaliencyInputs, SaliencyModel, chunks
from app_cdm.saliency.batches import BatchLimit
from app_cdm.saliency.combine import saliency_maps


class MapSource(Protocol):
    """Gives `(len(part), H, W)` maps in [0, 1] of some slices of one volume, for one class."""

    def __call__(self, class_index: int, part: np.ndarray) -> np.ndarray: ...


def map_source(
    model: SaliencyModel,
    decoder: PixelDecoder | None,
    student: StudentMaps | None,
    stack: SliceStack,
    settings: SegmentationSettings,
    batch: BatchLimit,
) -> MapSource:
    """The source that `settings.method` names.

    Args:
        model: the networks of the diffusion model.
        decoder: the pixel decoder, if there is one.
        student: maps of the student, if there is one.
        stack: the slices of a volume.
        settings: method and, for `cdm_saliency`, the rest.
        batch: most images in one call.

    Raises:
        ValueError: the model lacks what the method needs.
    """
    if settings.method == "cdm_saliency":
        return lambda class_index, part: batch.run(partial(_saliency, model, _inputs(stack, part, class_index), settings.saliency)).numpy()
    if settings.method == "cldf" and decoder is not None:
        if feature_settings(decoder).contrast_levels:  # features of a class are of no use to another
            return lambda class_index, part: batch.run(partial(decoder_maps, model, decoder, _inputs(stack, part, class_index))).numpy()
        return DecoderMaps(model, decoder, stack, batch)
    if settings.method == "student" and student is not None:
        return student
    raise ValueError(
        f"method = {settings.method!r}: this model has not been trained for it; train the stages it lacks, or choose another method"
    )


class _MapsOfAllClasses(ABC):
    """Makes the maps of a slice once, for all classes, and keeps them.

    Args:
        batch: most images in one call.
    """

    def __init__(self, batch: BatchLimit) -> None:
        self._batch = batch
        self._found: dict[int, np.ndarray] = {}

    def __call__(self, class_index: int, part: np.ndarray) -> np.ndarray:
        missing = [index for index in part.tolist() if index not in self._found]
        if missing:
            made = self._batch.run(partial(self._make, np.array(missing)))
            self._found |= dict(zip(missing, made.numpy(), strict=True))
        return np.stack([self._found[index][class_index] for index in part.tolist()])

    @abstractmethod
    def _make(self, part: np.ndarray, batch_images: int) -> torch.Tensor:
        """`(len(part), C, H, W)` maps on the CPU, with at most so many images in one call."""


class StudentMaps(_MapsOfAllClasses):
    """Probabilities of the student; one forward pass a slice.

    Args:
        student: the network.
        stack: the slices of a volume.
        batch: most slices in one call.
    """

    def __init__(self, student: StudentNetwork, stack: SliceStack, batch: BatchLimit) -> None:
        super().__init__(batch)
        self._student, self._slices = student, stack.slices

    def _make(self, part: np.ndarray, batch_images: int) -> torch.Tensor:
        one_volume, maps = torch.zeros(len(self._slices), dtype=torch.long), []
        for some in torch.from_numpy(part).split(batch_images):
            samples = with_neighbours(self._slices, some, one_volume, self._student.config.num_neighbours)
            with torch.no_grad():
                maps.append(torch.sigmoid(self._student(samples.to(self._student.device))).cpu())
        return torch.cat(maps)


class DecoderMaps(_MapsOfAllClasses):
    """Probabilities of a pixel decoder on features of the null condition, which know of no class.

    Args:
        model: the networks of the diffusion model.
        decoder: the pixel decoder.
        stack: the slices of a volume.
        batch: most U-Net images in one call.
    """

    def __init__(self, model: SaliencyModel, decoder: PixelDecoder, stack: SliceStack, batch: BatchLimit) -> None:
        super().__init__(batch)
        self._model, self._decoder, self._stack = model, decoder, stack

    def _make(self, part: np.ndarray, batch_images: int) -> torch.Tensor:
        inputs = _inputs(self._stack, part, class_index=0)
        return decoder_maps_of_classes(self._model, self._decoder, inputs, range(self._model.num_classes), batch_images)


def slice_uncertainty(maps: np.ndarray) -> np.ndarray:
    """`(S,)` share of the target's pixels that are expected to be wrong: sum of min(p, 1 - p) over sum of p, at most 1.

    Args:
        maps: `(S, H, W)` probabilities; slices that the gate left out are 0 and so certain.
    """
    expected = np.minimum(maps, 1 - maps).sum(axis=(1, 2))
    return np.asarray(np.minimum(expected / np.maximum(maps.sum(axis=(1, 2)), 1.0), 1.0))


def _saliency(model: SaliencyModel, inputs: SaliencyInputs, settings: SaliencySettings, batch_images: int) -> torch.Tensor:
    """`saliency_maps` of slices together, or one by one where not even two images fit; fewer cannot be set."""
    parts = [inputs] if batch_images > 1 else chunks(inputs, 1, 1)
    settings = settings.replace(batch_images=max(2, batch_images))
    return torch.cat([saliency_maps(model, part, settings) for part in parts])


def _inputs(stack: SliceStack, part: np.ndarray, class_index: int) -> SaliencyInputs:
    return SaliencyInputs(stack.slices[part], stack.positions[part], tuple(int(index) for index in part), class_index)

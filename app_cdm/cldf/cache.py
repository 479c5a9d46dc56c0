"""Features computed once and kept on disk while a decoder trains."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from app_cdm.cldf.features import FeatureSettings, extract_features
from app_cdm.data.writing import write_atomically
from app_cdm.saliency.base import SaliencyInputs, SaliencyModel

SLICES_PER_CALL = 16
SPARE_BYTES = 512 * 2**20
DONE = "done.json"


class FeatureCache:
    """Memory-mapped float16 features of some slices.

    Args:
        folder: where they are kept; `remove` deletes it.
        max_gib: largest size on disk.
    """

    def __init__(self, folder: Path, max_gib: float) -> None:
        self._folder, self._max_bytes = folder, max_gib * 2**30

    def fill(
        self, model: SaliencyModel, inputs: SaliencyInputs, settings: FeatureSettings, progress: Callable[[int], None] | None = None
    ) -> list[np.ndarray]:
        """Features of all slices, from disk as far as a previous call came.

        Args:
            model: the networks of the diffusion model.
            inputs: M slices and the class.
            settings: which features.
            progress: called with the number of slices done.

        Returns:
            One memory-mapped `(M, v * c, h, w)` float16 array a block, coarsest first.

        Raises:
            OSError: the features would take more than `max_gib`, or the disk is too full for them.
        """
        count, identity = len(inputs.slice_indices), _identity(inputs, settings)
        paths = [self._folder / f"block_{block}.npy" for block in settings.blocks]
        done = self._num_done(identity)
        if not done:
            self.remove()
            self._folder.mkdir(parents=True)
        if done < count:
            shapes = [(count, *block.shape[1:]) for block in extract_features(model, inputs.select(0, 1), settings)]
            size = 2 * sum(int(np.prod(shape)) for shape in shapes)
            self._check_room(size, size * (count - done) // count)
            arrays = [_open_array(path, shape, "r+" if done else "w+") for path, shape in zip(paths, shapes, strict=True)]
            for start in range(done, count, SLICES_PER_CALL):
                found = extract_features(model, inputs.select(start, start + SLICES_PER_CALL), settings)
                for array, block in zip(arrays, found, strict=True):
                    array[start : start + SLICES_PER_CALL] = block.cpu().numpy()
                    array.flush()
                done = min(start + SLICES_PER_CALL, count)
                write_atomically(self._folder / DONE, json.dumps({"num_slices": done, "identity": identity}).encode())
                if progress is not None:
                    progress(done)
        return [np.load(path, mmap_mode="r") for path in paths]

    def _num_done(self, identity: str) -> int:
        """How many of these features a previous call has left; those of other slices or settings are none."""
        try:
            state = json.loads((self._folder / DONE).read_text())
            return int(state["num_slices"]) if state["identity"] == identity else 0
        except (OSError, ValueError, KeyError):
            return 0

    def remove(self) -> None:
        """Deletes the files, first the one that says what the others hold."""
        (self._folder / DONE).unlink(missing_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _check_room(self, needed: int, to_come: int) -> None:
        free = shutil.disk_usage(self._folder).free
        wanted, allowed = f"the features take {needed / 2**30:.1f} GiB", f"{self._max_bytes / 2**30:.1f} GiB allowed"
        if needed > self._max_bytes:
            raise OSError(f"{wanted}, more than the {allowed}: use fewer levels, blocks or slices")
        if to_come + SPARE_BYTES > free:
            raise OSError(f"{wanted} and {self._folder} has {free / 2**30:.1f} GiB free: make room and start again")


def _identity(inputs: SaliencyInputs, settings: FeatureSettings) -> str:
    """Hash of what the features are of; the model is told apart by the folder."""
    digest = hashlib.sha256(json.dumps([settings.to_dict(), inputs.slice_indices, inputs.class_index]).encode())
    for tensor in (inputs.slices, inputs.positions):
        digest.update(np.ascontiguousarray(tensor.numpy()).tobytes())
    return digest.hexdigest()


def _open_array(path: Path, shape: tuple[int, ...], mode: str) -> np.memmap[Any, Any]:
    array: np.memmap[Any, Any] = np.lib.format.open_memmap(path, mode, np.float16, shape)  # type: ignore[no-untyped-call]
    return array


def half_resolution(seeds: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Seeds at the resolution of the finest features: of a cell's pixels three quarters must agree, else it is ignored.

    Args:
        seeds: `(M, H, W)` int8.
        size: rows and columns wanted.

    Returns:
        `(M, h, w)` int8.
    """
    result = torch.full((len(seeds), *size), -1, dtype=torch.int8)
    for value in (1, 0):
        share = torch.nn.functional.adaptive_avg_pool2d((seeds == value).float()[:, None], size)[:, 0]
        result[share >= 0.75] = value
    return result

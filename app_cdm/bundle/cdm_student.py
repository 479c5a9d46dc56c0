"""What the student needs beside MONAI's own transforms: slices as in training, and maps back on the grid of their volume.

Every exported bundle carries this file as `scripts/cdm_student.py`, so it imports torch, numpy, nibabel and MONAI alone.
The rules are those of `app_cdm.data.slices`; `tests/test_bundle.py` holds the two together.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from monai.data.meta_tensor import MetaTensor
from monai.inferers.inferer import Inferer
from monai.transforms.inverse import InvertibleTransform
from monai.transforms.spatial.array import Orientation
from monai.transforms.transform import MapTransform

RAS_LABELS = (("L", "R"), ("P", "A"), ("I", "S"))
# Anatomical directions of rows, columns and slices, by the direction of slicing.
DISPLAY_AXES = {"S": "PLS", "P": "ILP", "L": "IPL"}
OPPOSITE = {"I": "S", "A": "P", "R": "L"}
MIN_SLICE_VOXELS = 8
MAX_SAMPLED_VOXELS = 2_000_000
FOREGROUND_FRACTION = 0.1
MIN_LINE_COVERAGE = 0.05


def find_images(folder: str, pattern: str) -> list[str]:
    """Paths of the files in a folder that match a pattern, sorted.

    Raises:
        FileNotFoundError: there is none.
    """
    found = sorted(str(path) for path in Path(folder).glob(pattern) if path.is_file())
    if not found:
        raise FileNotFoundError(f"no {pattern} in {folder!r}: name another --dataset_dir or --image_pattern")
    return found


class SliceOrientationd(MapTransform, InvertibleTransform):
    """Turns volumes to (rows, columns, slices); slices lie along the voxel axis with the largest spacing.

    Among equals the axis closest to head-foot counts, then the last; a single slice is never cut across. The affine follows.
    """

    def __init__(self, keys: Any, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.orientations = {axes: Orientation(axcodes=axes, labels=RAS_LABELS) for axes in DISPLAY_AXES.values()}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            if image.ndim != 4 or image.shape[0] != 1:
                raise ValueError(f"{key} of shape {tuple(image.shape)}, channels first: must be one 3D volume of one channel")
            result[key] = self.orientations[_display_axes(np.asarray(image.affine), image.shape[1:])](image)
        return result

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            applied = result[key].applied_operations[-1]
            axes = _display_axes(np.asarray(applied["extra_info"]["original_affine"]), applied["orig_size"])
            result[key] = self.orientations[axes].inverse(result[key])
        return result


def _display_axes(affine: np.ndarray, shape: tuple[int, ...]) -> str:
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    usable = [axis for axis in range(3) if min(np.delete(shape, axis)) >= MIN_SLICE_VOXELS]
    if not usable:
        raise ValueError(f"image of shape {tuple(shape)}: no slice has {MIN_SLICE_VOXELS} voxels on each side")
    candidates = [axis for axis in usable if spacing[axis] >= spacing[usable].max() * (1 - 1e-3)]
    head_foot = np.abs(affine[2, :3]) / spacing
    axis = max(candidates, key=lambda axis: (round(float(head_foot[axis]), 3), axis))
    direction = str(nib.orientations.aff2axcodes(affine)[axis])
    return DISPLAY_AXES[OPPOSITE.get(direction, direction)]


def scale_by_foreground(image: torch.Tensor, lower: float, upper: float) -> torch.Tensor:
    """Maps two percentiles of the foreground to -1 and 1, without clipping.

    Args:
        image: `(1, R, C, S)`.
        lower: percentile that becomes -1.
        upper: percentile that becomes 1.

    Raises:
        ValueError: the image holds a single intensity, or values that are not finite.
    """
    values = np.asarray(image[0].cpu(), dtype=np.float32)
    if not np.isfinite(values).all():
        raise ValueError("the image holds NaN or infinity: replace them by the background value")
    sample = _sampled(values)
    threshold, darkest, bright = _foreground_threshold(values)
    foreground = sample[sample > threshold] if (sample > threshold).any() else values[values > threshold]
    low, high = np.percentile(foreground, [lower, upper])
    if not high > low:
        low, high = darkest, bright
    return (image - float(low)) * (2.0 / float(high - low)) - 1.0


def foreground_box(image: torch.Tensor, margin: float) -> torch.Tensor:
    """`(1, R, C, S)` bool: the in-plane box of rows and columns that hold more than specks of foreground, in every slice.

    Args:
        image: `(1, R, C, S)`, in any linear scale of its intensities.
        margin: around the box, as a fraction of its longer side.
    """
    values = np.asarray(image[0].cpu())
    foreground = values > _foreground_threshold(values)[0]
    sides = []
    for axis in (0, 1):
        coverage = foreground.mean(axis=(1 - axis, 2))
        held = np.flatnonzero(coverage > MIN_LINE_COVERAGE * coverage.max())
        sides.append((int(held[0]), int(held[-1]) + 1))
    width = round(margin * max(stop - start for start, stop in sides))
    box = torch.zeros(image.shape, dtype=torch.bool)
    bounds = []
    for (start, stop), size in zip(sides, values.shape, strict=False):
        start, stop = max(0, start - width), min(size, stop + width)
        bounds.append(slice(start, stop) if stop - start >= MIN_SLICE_VOXELS else slice(0, size))
    box[:, bounds[0], bounds[1]] = True
    return box


def _sampled(values: np.ndarray) -> np.ndarray:
    stride = max(1, round((values.size / MAX_SAMPLED_VOXELS) ** (1 / 3)))
    return values[::stride, ::stride, ::stride] if min(values.shape) >= 4 * stride else values


def _foreground_threshold(values: np.ndarray) -> tuple[float, float, float]:
    """A tenth of the range above its dark end, and the range."""
    darkest, bright = np.percentile(_sampled(values), [0.1, 99.5])
    if not bright > darkest:
        darkest, bright = float(values.min()), float(values.max())
    if not bright > darkest:
        raise ValueError(f"the image holds a single intensity ({darkest:g}): nothing can be segmented in it")
    return float(darkest + FOREGROUND_FRACTION * (bright - darkest)), float(darkest), float(bright)


class StudentInferer(Inferer):
    """Probabilities of a 2D network in every slice of a volume, each seen with its neighbours as channels.

    Slices are resized to fit the network's square (antialiased, in-plane spacing respected) and padded with -1; the
    probabilities are resized back, so that borders are drawn at the resolution of the volume.

    Args:
        image_size: side of the square.
        num_neighbours: slices seen on either side; past the ends the last slice is repeated.
        batch_slices: slices in one forward pass.
    """

    def __init__(self, image_size: int, num_neighbours: int, batch_slices: int = 16) -> None:
        self.image_size, self.num_neighbours, self.batch_slices = image_size, num_neighbours, batch_slices

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """`(1, K, R, C, S)` probabilities of K classes.

        Args:
            inputs: `(1, 1, R, C, S)` volume with its affine, in [-1, 1].
            network: `(B, 2 n + 1, H, W)` to `(B, K, H, W)` log-odds.
            args: of the network.
            kwargs: of the network.
        """
        if not isinstance(inputs, MetaTensor) or inputs.shape[:2] != (1, 1):
            raise ValueError(f"inputs of shape {tuple(inputs.shape)}: must be one volume with its affine")
        spacing = inputs.affine.reshape(-1, 4, 4)[0, :3, :2].norm(dim=0).tolist()
        slices = inputs.as_tensor()[0, 0].movedim(-1, 0)
        count, rows, columns = slices.shape
        scale = self.image_size / max(rows * spacing[0], columns * spacing[1])
        height, width = max(1, round(rows * spacing[0] * scale)), max(1, round(columns * spacing[1] * scale))
        squares = self._squares(slices, height, width)
        top, left = (self.image_size - height) // 2, (self.image_size - width) // 2
        offsets = torch.arange(-self.num_neighbours, self.num_neighbours + 1)
        parts = []
        for indices in torch.arange(count).split(self.batch_slices):
            samples = squares[(indices[:, None] + offsets).clamp(0, count - 1)]
            found = torch.sigmoid(network(samples, *args, **kwargs).float())[..., top : top + height, left : left + width]
            parts.append(F.interpolate(found, size=(rows, columns), mode="bilinear", align_corners=False))
        return torch.cat(parts).movedim(0, -1)[None]

    def _squares(self, slices: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """`(S, H, W)` slices on the network's square."""
        resized = F.interpolate(slices[:, None].float(), size=(height, width), mode="bilinear", align_corners=False, antialias=True)
        bottom, right = self.image_size - height, self.image_size - width
        top, left = bottom // 2, right // 2
        return F.pad(resized[:, 0], (left, right - left, top, bottom - top), value=-1.0)


def label_map(probabilities: torch.Tensor, threshold: float) -> torch.Tensor:
    """`(1, R, C, S)` float32: 0 where no probability is above the threshold, else i + 1 for the most probable class i.

    Args:
        probabilities: `(K, R, C, S)`.
        threshold: on the probability.
    """
    best, index = probabilities.max(dim=0, keepdim=True)
    return torch.where(best > threshold, index + 1, 0).float()

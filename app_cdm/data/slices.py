"""A volume as a stack of network-sized slices, and maps on those slices back on the source voxel grid."""

from __future__ import annotations

from dataclasses import dataclass

import nibabel.orientations as orientations
import numpy as np
import torch
import torch.nn.functional as F

from app_cdm.config import PreprocessSettings
from app_cdm.data.volume import Volume, VolumeError

# Anatomical direction that each in-plane image axis follows, by the direction of slicing: rows, columns, slices.
# Axial slices are shown with the nose up and the patient's left on the right, as every viewer does.
DISPLAY_AXES = {"S": "PLS", "P": "ILP", "L": "IPL"}
OPPOSITE = dict(zip("LRAPIS", "RLPASI", strict=True))
MAX_SAMPLED_VOXELS = 2_000_000
FOREGROUND_FRACTION = 0.1
MIN_LINE_COVERAGE = 0.01
MIN_SLICE_VOXELS = 8
SLICES_AT_ONCE = 64  # bounded memory for thousand-slice volumes


@dataclass(frozen=True)
class SliceGeometry:
    """How slices were cut from a volume; enough to put maps back.

    Attributes:
        source_shape: shape `(X, Y, Z)` of the file's voxel array.
        to_display: nibabel orientation transform from the file's array to `(rows, columns, slices)`.
        slicing_axis: the file's voxel axis along which slices lie.
        is_reversed: whether slice 0 of the stack is the last slice of the file.
        crop: row start, row stop, column start, column stop in display orientation.
        resized: rows and columns of the crop after resizing.
        image_size: side of the padded square.
        slice_spacing_mm: distance between slices.
    """

    source_shape: tuple[int, int, int]
    to_display: np.ndarray
    slicing_axis: int
    is_reversed: bool
    crop: tuple[int, int, int, int]
    resized: tuple[int, int]
    image_size: int
    slice_spacing_mm: float

    @property
    def padding(self) -> tuple[int, int]:
        """Rows above and columns to the left of the resized crop."""
        return (self.image_size - self.resized[0]) // 2, (self.image_size - self.resized[1]) // 2

    def to_file_order(self, values: np.ndarray) -> np.ndarray:
        """Reorders values along axis 0 from stack order to the file's order (its own inverse)."""
        return values[::-1] if self.is_reversed else values

    def to_volume(self, maps: torch.Tensor, fill: float = 0.0) -> np.ndarray:
        """Puts maps of slices on the source voxel grid, bilinear in-plane.

        Args:
            maps: `(S, H, W)` float, one map a slice in stack order, at network resolution.
            fill: value outside the crop.

        Returns:
            `(X, Y, Z)` float32 in the file's voxel order.
        """
        volume = np.full(self.source_shape, fill, dtype=np.float32)
        self._place(maps, volume)
        return volume

    def to_mask(self, maps: torch.Tensor) -> np.ndarray:
        """Where maps are above 0 on the source voxel grid: `to_volume(maps, fill=-1.0) > 0` in a fifth of the memory.

        Args:
            maps: as of `to_volume`.

        Returns:
            `(X, Y, Z)` bool in the file's voxel order.
        """
        mask = np.zeros(self.source_shape, dtype=bool)
        self._place(maps, mask)
        return mask

    def _place(self, maps: torch.Tensor, target: np.ndarray) -> None:
        """Writes maps, or where they are above 0, into an array in the file's voxel order."""
        top, left = self.padding
        inner = maps[:, None, top : top + self.resized[0], left : left + self.resized[1]].float()
        row0, row1, column0, column1 = self.crop
        display = orientations.apply_orientation(target, self.to_display)  # a view: what is written goes into the target
        for start in range(0, maps.shape[0], SLICES_AT_ONCE):
            size = (row1 - row0, column1 - column0)
            part = F.interpolate(inner[start : start + SLICES_AT_ONCE], size=size, mode="bilinear", align_corners=False)
            values = part[:, 0].permute(1, 2, 0).cpu().numpy()
            display[row0:row1, column0:column1, start : start + SLICES_AT_ONCE] = values > 0 if target.dtype == bool else values


@dataclass(frozen=True)
class SliceStack:
    """The slices of one volume.

    Attributes:
        slices: `(S, 1, H, W)` float32 in [-1, 1]; background and padding are -1.
        positions: `(S,)` float32, 0 at the first and 1 at the last slice with content; NaN for a single slice.
        geometry: how to put maps back.
    """

    slices: torch.Tensor
    positions: torch.Tensor
    geometry: SliceGeometry


def find_slicing_axis(volume: Volume) -> int:
    """The voxel axis with the largest spacing; among equals the one closest to head-foot, then the last.

    Only axes whose slices are large enough count, where there are any: a single slice is never cut across.
    """
    spacing, shape = np.asarray(volume.spacing_mm), volume.array.shape
    usable = [axis for axis in range(3) if min(np.delete(shape, axis)) >= MIN_SLICE_VOXELS] or [0, 1, 2]
    candidates = [axis for axis in usable if spacing[axis] >= spacing[usable].max() * (1 - 1e-3)]
    head_foot = np.abs(volume.affine[2, :3]) / spacing
    return max(candidates, key=lambda axis: (round(float(head_foot[axis]), 3), axis))


def cut_slices(volume: Volume, settings: PreprocessSettings, slicing_axis: int = -1) -> SliceStack:
    """Cuts, crops, normalises and resizes the slices of a volume.

    Intensities between two percentiles of the foreground map linearly to [-1, 1] and are clipped. The in-plane
    crop keeps the physical aspect; spacing and affine of the source are untouched, see `SliceGeometry.to_volume`.

    Args:
        volume: the image.
        settings: size, percentiles and crop.
        slicing_axis: the file's voxel axis to slice along; -1 finds it.

    Raises:
        VolumeError: the volume holds a single intensity, or fewer than 8 voxels along an in-plane axis.
    """
    axis = find_slicing_axis(volume) if slicing_axis < 0 else slicing_axis
    to_display, is_reversed = _display_transform(volume.affine, axis)
    display = orientations.apply_orientation(volume.array, to_display)
    if min(display.shape[:2]) < MIN_SLICE_VOXELS:
        raise VolumeError(f"slices along axis {axis} are only {display.shape[0]}x{display.shape[1]} voxels: choose another slicing axis")
    low, high, is_foreground = _intensity_window(display, settings)
    crop = _foreground_box(is_foreground, settings) if settings.crop_foreground else (0, display.shape[0], 0, display.shape[1])
    order = np.argsort(to_display[:, 0])
    spacing = np.asarray(volume.spacing_mm)[order]
    resized = _fit((crop[1] - crop[0]) * spacing[0], (crop[3] - crop[2]) * spacing[1], settings.image_size)
    x, y, z = volume.array.shape
    geometry = SliceGeometry((x, y, z), to_display, axis, is_reversed, crop, resized, settings.image_size, float(spacing[2]))
    slices = _resize(display, geometry, low, high)
    return SliceStack(slices, _positions(is_foreground), geometry)


def _display_transform(affine: np.ndarray, axis: int) -> tuple[np.ndarray, bool]:
    """Orientation transform file -> (rows, columns, slices), and whether it reverses the slices."""
    source = orientations.io_orientation(affine)
    code = orientations.ornt2axcodes(source)[axis]
    name = code if code in DISPLAY_AXES else OPPOSITE[code]
    transform = orientations.ornt_transform(source, orientations.axcodes2ornt(tuple(DISPLAY_AXES[name])))
    return transform, bool(transform[axis, 1] < 0)


def _intensity_window(display: np.ndarray, settings: PreprocessSettings) -> tuple[float, float, np.ndarray]:
    """Percentiles of the foreground, and the foreground itself (brighter than a tenth of the range)."""
    stride = max(1, int(round((display.size / MAX_SAMPLED_VOXELS) ** (1 / 3))))
    sample = display[::stride, ::stride, ::stride] if min(display.shape) >= 4 * stride else display
    darkest, bright = np.percentile(sample, [0.1, 99.5])
    if not bright > darkest:
        darkest, bright = float(display.min()), float(display.max())
    if not bright > darkest:
        raise VolumeError(f"the image holds a single intensity ({darkest:g}): nothing can be segmented in it")
    threshold = darkest + FOREGROUND_FRACTION * (bright - darkest)
    foreground = sample[sample > threshold] if (sample > threshold).any() else display[display > threshold]
    low, high = np.percentile(foreground, [settings.lower_percentile, settings.upper_percentile])
    if not high > low:
        low, high = darkest, bright
    return float(low), float(high), display > threshold


def _foreground_box(is_foreground: np.ndarray, settings: PreprocessSettings) -> tuple[int, int, int, int]:
    """In-plane bounding box of rows and columns that hold more than specks, with a margin."""
    bounds: list[int] = []
    sides = []
    for axis in (0, 1):
        coverage = is_foreground.mean(axis=(1 - axis, 2))
        held = np.flatnonzero(coverage > MIN_LINE_COVERAGE * max(float(coverage.max()), 1e-9) * 5)
        sides.append((int(held[0]), int(held[-1]) + 1))
    margin = int(round(settings.crop_margin * max(stop - start for start, stop in sides)))
    for (start, stop), size in zip(sides, is_foreground.shape[:2], strict=True):
        start, stop = max(0, start - margin), min(size, stop + margin)
        if stop - start < MIN_SLICE_VOXELS:
            start, stop = 0, size
        bounds += [start, stop]
    return bounds[0], bounds[1], bounds[2], bounds[3]


def _fit(height_mm: float, width_mm: float, image_size: int) -> tuple[int, int]:
    scale = image_size / max(height_mm, width_mm)
    return max(1, round(height_mm * scale)), max(1, round(width_mm * scale))


def _resize(display: np.ndarray, geometry: SliceGeometry, low: float, high: float) -> torch.Tensor:
    """Crops, normalises, resizes (antialiased) and pads every slice."""
    row0, row1, column0, column1 = geometry.crop
    top, left = geometry.padding
    rows, columns = geometry.resized
    slices = torch.full((display.shape[2], 1, geometry.image_size, geometry.image_size), -1.0)
    for start in range(0, display.shape[2], SLICES_AT_ONCE):
        part = torch.from_numpy(np.ascontiguousarray(display[row0:row1, column0:column1, start : start + SLICES_AT_ONCE], dtype=np.float32))
        part = ((part - low) * (2.0 / (high - low)) - 1.0).clamp_(-1.0, 1.0).permute(2, 0, 1)[:, None]
        resized = F.interpolate(part, size=(rows, columns), mode="bilinear", align_corners=False, antialias=True)
        slices[start : start + SLICES_AT_ONCE, :, top : top + rows, left : left + columns] = resized
    return slices


def _positions(is_foreground: np.ndarray) -> torch.Tensor:
    """Relative position of each slice between the first and last slice with content."""
    count = is_foreground.shape[2]
    if count < 2:
        return torch.full((count,), float("nan"))
    area = is_foreground.mean(axis=(0, 1))
    held = np.flatnonzero(area > 0.1 * area.max())
    first, last = int(held[0]), int(held[-1])
    span = max(1, last - first)
    return torch.from_numpy(np.clip((np.arange(count) - first) / span, 0.0, 1.0).astype(np.float32))

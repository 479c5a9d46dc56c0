"""Masks and maps out, on the grid of the image they belong to; a file is there whole or not at all."""

from __future__ import annotations

import errno
import gzip
import io
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from app_cdm.data.grid import LPS_FROM_RAS, Volume
from app_cdm.data.nifti import affine_mm, spatial_unit

COMPRESSION_LEVEL = 6
QUICK_COMPRESSION_LEVEL = 1
NIFTI_GEOMETRY = (
    *("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
NRRD_TYPES = {"uint8": "uint8", "float32": "float"}
SCANNER = 1
WITHOUT_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def write_mask(mask: np.ndarray, volume: Volume, path: str | Path) -> None:
    """Writes a label mask as uint8 on the grid of its image.

    Args:
        mask: `(X, Y, Z)` of booleans or integers in 0..255, the shape of `volume.array`.
        volume: the image; gives the affine; qform, sform and unit where it was NIfTI.
        path: ends in `.nii`, `.nii.gz`, `.nrrd`, or `.png` for a volume of one slice along its last axis (rows x columns as the
            source picture, grey values are the labels).

    Raises:
        ValueError: shape, type, range or suffix do not fit.
        OSError: the disk refuses; what was at `path` before is untouched.
    """
    if mask.shape != volume.array.shape:
        raise ValueError(f"mask of shape {mask.shape} for an image of shape {volume.array.shape}: must be equal")
    if mask.dtype.kind not in "bui" or (mask.size and (mask.min() < 0 or mask.max() > 255)):
        raise ValueError(f"mask of type {mask.dtype} with values {mask.min()}..{mask.max()}: must be integers in 0..255")
    write_atomically(Path(path), _encoded(mask.astype(np.uint8), volume, Path(path)))


def write_map(saliency_map: np.ndarray, volume: Volume, path: str | Path) -> None:
    """Writes a map as float32 on the grid of its image.

    Args:
        saliency_map: `(X, Y, Z)` of finite real numbers, the shape of `volume.array`.
        volume: the image; gives the affine; qform, sform and unit where it was NIfTI.
        path: ends in `.nii`, `.nii.gz` or `.nrrd`.

    Raises:
        ValueError: shape, values or suffix do not fit.
        OSError: the disk refuses; what was at `path` before is untouched.
    """
    _check_map(saliency_map, volume)
    write_atomically(Path(path), _encoded(saliency_map.astype(np.float32), volume, Path(path)))


def map_as_nifti(saliency_map: np.ndarray, volume: Volume) -> bytes:
    """What `write_map` would write as `.nii.gz`, quickly compressed, for a client that waits for it.

    Raises:
        ValueError: shape or values do not fit.
    """
    _check_map(saliency_map, volume)
    return gzip.compress(_nifti(saliency_map.astype(np.float32), volume), QUICK_COMPRESSION_LEVEL, mtime=0)


def _check_map(saliency_map: np.ndarray, volume: Volume) -> None:
    if saliency_map.shape != volume.array.shape:
        raise ValueError(f"map of shape {saliency_map.shape} for an image of shape {volume.array.shape}: must be equal")
    if not np.isfinite(saliency_map).all():
        raise ValueError("map holds NaN or infinity: must be finite")


def write_atomically(path: Path, content: bytes) -> None:
    """Puts a file in place in one step: written beside it under another name, flushed to the disk, then renamed.

    Raises:
        OSError: the disk refuses; nothing is left behind, and what was at `path` before is untouched.
    """
    with _beside(path, content) as temporary:
        os.replace(temporary, path)


def write_once(path: Path, content: bytes) -> bool:
    """The same, unless there is such a file already; of several processes that try, on whatever machine, one succeeds.

    On a file system without hard links the last one of those that try at the same moment does.

    Returns:
        Whether this content is there now.

    Raises:
        OSError: the disk refuses; nothing is left behind.
    """
    with _beside(path, content) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in WITHOUT_LINKS:
                raise
            if path.exists():
                return False
            os.replace(temporary, path)
    return True


@contextmanager
def _beside(path: Path, content: bytes) -> Iterator[Path]:
    """A file with the content beside a path, flushed to the disk; gone in the end."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _encoded(array: np.ndarray, volume: Volume, path: Path) -> bytes:
    """The bytes of a file of the format that the path's suffix names; equal arrays give equal bytes."""
    name = path.name.lower()
    if name.endswith(".nii"):
        return _nifti(array, volume)
    if name.endswith(".nii.gz"):
        return gzip.compress(_nifti(array, volume), COMPRESSION_LEVEL, mtime=0)
    if name.endswith(".nrrd"):
        return _nrrd(array, volume.affine)
    if name.endswith(".png") and array.dtype == np.uint8:
        return _png(array)
    formats = "'.nii', '.nii.gz', '.nrrd'" + (", '.png'" if array.dtype == np.uint8 else "")
    raise ValueError(f"{path.name}: cannot write this suffix: must be one of {formats}")


def _nifti(array: np.ndarray, volume: Volume) -> bytes:
    """NIfTI-1 with the source's qform, sform and unit, bit for bit, where it was NIfTI; else both are the affine, as scanner space."""
    header = nib.nifti1.Nifti1Header()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    source = volume.nifti_header
    if source is not None and np.allclose(affine_mm(source), volume.affine, atol=1e-4):
        for field in NIFTI_GEOMETRY:
            header[field] = source[field]
        header["pixdim"][4:] = 1
        header["xyzt_units"] = spatial_unit(source)
    else:
        header.set_sform(volume.affine, SCANNER)
        header.set_qform(volume.affine, SCANNER)
        header.set_xyzt_units("mm")
    # The file holds slice after slice; nibabel would gather each of them from the whole of an array in C order.
    image = nib.nifti1.Nifti1Image(np.asfortranarray(array), None, header)
    return bytes(image.to_bytes())


def _nrrd(array: np.ndarray, affine: np.ndarray) -> bytes:
    """NRRD in LPS space, as 3D Slicer and ITK write it."""
    lps = LPS_FROM_RAS @ affine
    columns = [f"({','.join(repr(float(value)) for value in lps[:3, axis])})" for axis in range(4)]
    lines = [
        "NRRD0004",
        f"type: {NRRD_TYPES[array.dtype.name]}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(str(length) for length in array.shape)}",
        f"space directions: {' '.join(columns[:3])}",
        "kinds: domain domain domain",
        "endian: little",
        "encoding: gzip",
        f"space origin: {columns[3]}",
    ]
    voxels = array.astype(array.dtype.newbyteorder("<")).tobytes(order="F")
    return ("\n".join(lines) + "\n\n").encode("ascii") + gzip.compress(voxels, COMPRESSION_LEVEL, mtime=0)


def _png(mask: np.ndarray) -> bytes:
    """8-bit grey PNG of one slice, rows x columns."""
    if mask.shape[2] != 1:
        raise ValueError(f"mask of shape {mask.shape} as .png: must have one slice along its last axis")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(mask[:, :, 0].T)).save(buffer, format="PNG")
    return buffer.getvalue()

"""NRRD in, through MONAI's `ITKReader`."""

from __future__ import annotations

import re
from pathlib import Path

import itk
import numpy as np
from monai.data.image_reader import ITKReader

from app_cdm.data.grid import Volume, VolumeError, check_shape, checked_volume, reading

SUFFIXES = (".nrrd", ".nhdr")
MAX_HEADER_BYTES = 1 << 20


def read_nrrd(path: Path) -> Volume:
    """Reads one NRRD file, attached (`.nrrd`) or detached (`.nhdr` beside its data file).

    ITK turns the file's space (LPS, RAS, LAS or none, which counts as LPS) into LPS; the affine returned is RAS.

    Raises:
        FileNotFoundError: there is no such file.
        VolumeError: the file is broken, not one 2D or 3D scalar image, not finite, its affine is singular, or its data
            file lies outside the header's folder.
    """
    check_data_file(path)
    with reading(path, "NRRD"):
        image_io = itk.NrrdImageIO.New()
        image_io.SetFileName(str(path))
        image_io.ReadImageInformation()
        shape = tuple(image_io.GetDimensions(axis) for axis in range(image_io.GetNumberOfDimensions()))
        check_shape(shape, path)
        if image_io.GetNumberOfComponents() != 1:
            raise VolumeError(
                f"{path.name}: {image_io.GetNumberOfComponents()} values a voxel, a time series, colour or several channels: "
                "save one 3D volume of it and send that"
            )
        reader = ITKReader(pixel_type=itk.F, imageio=image_io)
        array, meta = reader.get_data(reader.read(path))
        affine = np.eye(4)
        axes = np.asarray(meta["affine"]).shape[0] - 1
        affine[:axes, :axes] = np.asarray(meta["affine"])[:axes, :axes]
        affine[:axes, 3] = np.asarray(meta["affine"])[:axes, axes]
    return checked_volume(np.asarray(array), affine, "nrrd", path)


def check_data_file(path: Path) -> None:
    """Refuses a header that sends the reader to a file in another folder: it may come from an upload.

    Raises:
        FileNotFoundError: there is no such file.
        VolumeError: it does, or it is too long to be checked as a whole, or the file is no NRRD file.
    """
    with path.open("rb") as file:
        start = file.read(MAX_HEADER_BYTES)
    header, *voxels = re.split(rb"\n\r?\n", start, maxsplit=1)
    if not header.startswith(b"NRRD"):
        raise VolumeError(f"{path.name}: not an NRRD file (its first bytes are {header[:8]!r}): check or export the file again")
    if not voxels and len(start) == MAX_HEADER_BYTES:
        raise VolumeError(f"{path.name}: no blank line ends the header within {MAX_HEADER_BYTES >> 20} MiB: export the file again")
    for line in re.split(r"[\r\n]", header.decode("latin-1")):
        key, _, value = line.partition(":")
        if key.replace(" ", "").lower() == "datafile" and (set(value) & set("/\\") or value.strip().startswith("LIST")):
            raise VolumeError(f"{path.name}: data file {value.strip()!r} must be one file in the same folder: save all as one .nrrd file")

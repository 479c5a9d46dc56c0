"""PNG and JPEG in, through Pillow (MONAI's `PILReader` leaves a broken file open)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from app_cdm.data.grid import LPS_FROM_RAS, Volume, VolumeError, checked_volume, reading

SUFFIXES = (".png", ".jpg", ".jpeg")
FORMATS = ("PNG", "JPEG")  # whatever a file is called: Pillow would hand PostScript to another program
GREY_MODES = ("L", "F", "I", "I;16", "I;16B", "I;16L")


def read_picture(path: Path) -> Volume:
    """Reads one PNG or JPEG as a volume of one slice, `(columns, rows, 1)`.

    A picture carries no geometry: pixels count as 1 mm, and the affine `diag(-1, -1, 1, 1)` makes columns run to the
    patient's left and rows to posterior, so that a radiological viewer shows the picture as it is. Colour becomes luminance
    (ITU-R 601-2), transparency is dropped, an EXIF orientation is not applied.

    Raises:
        FileNotFoundError: there is no such file.
        VolumeError: the file is broken, of another kind, or moves.
    """
    with reading(path, "PNG or JPEG"), Image.open(path, formats=FORMATS) as picture:
        if picture.format == "PNG" and getattr(picture, "n_frames", 1) > 1:
            raise VolumeError(f"{path.name}: several pictures in one file: send each as a file of its own")
        array = np.asarray(luminance(picture)).T
    return checked_volume(array, LPS_FROM_RAS, "image", path)


def luminance(picture: Image.Image) -> Image.Image:
    """One grey channel of any picture; 16-bit grey keeps its depth."""
    if picture.mode in GREY_MODES:
        return picture
    if picture.mode in ("1", "LA"):
        return picture.convert("L")
    return picture.convert("RGB").convert("L")

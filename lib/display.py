"""Images as NIfTI files, for a viewer in the browser: the file itself where it is one, else a copy on the same voxel grid."""

from __future__ import annotations

import hashlib
import tempfile
import threading
from pathlib import Path

from app_cdm.data import nifti
from app_cdm.data.volume import read_volume, write_map


class DisplayFiles:
    """NIfTI files of images; copies are kept by size and time of change of their source.

    Args:
        folder: where copies are kept.
    """

    _converting = threading.Lock()  # of all: a large image is converted once, however many ask for it

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, source: Path) -> Path:
        """The NIfTI file of an image, with the source's voxel order.

        Args:
            source: a NIfTI, NRRD, PNG or JPEG file.

        Raises:
            FileNotFoundError: there is no such file.
            VolumeError: it cannot be read.
        """
        if source.name.lower().endswith(nifti.SUFFIXES):
            return source
        stat = source.stat()
        key = hashlib.sha256(f"{source}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()[:16]
        target = self._folder / key / "image.nii.gz"
        with self._converting:
            if not target.is_file():
                convert(source, target)
        return target


def convert(source: Path, target: Path) -> None:
    """Writes an image as NIfTI, float32, with its own voxel grid and affine; complete or not at all.

    Raises:
        VolumeError: it cannot be read.
    """
    volume = read_volume(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        written = Path(work) / target.name
        write_map(volume.array, volume, written)
        written.replace(target)

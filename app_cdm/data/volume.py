"""Images in, masks out: every format as one voxel array with an affine."""

from __future__ import annotations

from pathlib import Path

from app_cdm.data import nifti, nrrd, picture
from app_cdm.data.dicom import DicomSeries, find_dicom_series, is_dicom_file, read_dicom_file, read_dicom_folder, read_dicom_series
from app_cdm.data.grid import Volume, VolumeError, VolumeKind
from app_cdm.data.writing import write_map, write_mask

__all__ = [
    "DicomSeries",
    "Volume",
    "VolumeError",
    "VolumeKind",
    "find_dicom_series",
    "read_dicom_series",
    "read_volume",
    "write_map",
    "write_mask",
]

DICOM_SUFFIXES = (".dcm", ".ima")
KNOWN_FORMATS = "NIfTI (.nii, .nii.gz), NRRD (.nrrd, .nhdr), PNG, JPEG, a DICOM file or the folder of one DICOM series"


def read_volume(path: str | Path) -> Volume:
    """Reads one image of any known format.

    Voxels stay in the file's order and on its grid: nothing is flipped, turned or resampled, and the affine always maps voxel
    indices to RAS mm.

    Args:
        path: a NIfTI (`.nii`, `.nii.gz`), NRRD (`.nrrd`, `.nhdr`), PNG, JPEG or DICOM file, or a folder with one DICOM series.

    Returns:
        The image; a 2D image as `(columns, rows, 1)`.

    Raises:
        FileNotFoundError: there is no such file or folder.
        VolumeError: the image cannot be used; the message says what to do.

    Example:
        >>> volume = read_volume("flair.nii.gz")  # doctest: +SKIP
        >>> volume.array.shape, volume.spacing_mm  # doctest: +SKIP
        ((240, 240, 155), (1.0, 1.0, 1.0))
    """
    path = Path(path)
    name = path.name.lower()
    if path.is_dir():
        return read_dicom_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"no such image: {path}")
    if name.endswith(nifti.SUFFIXES):
        return nifti.read_nifti(path)
    if name.endswith(nrrd.SUFFIXES):
        return nrrd.read_nrrd(path)
    if name.endswith(picture.SUFFIXES):
        return picture.read_picture(path)
    if is_dicom_file(path):
        return read_dicom_file(path)
    if name.endswith(DICOM_SUFFIXES):
        raise VolumeError(f"{path.name}: no DICOM file marker (a file without preamble, or another format): export it as a DICOM file")
    raise VolumeError(f"{path.name}: unknown image format: send {KNOWN_FORMATS}")

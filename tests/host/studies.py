"""Small studies for a real server: head-like volumes with one bright lesion, as NIfTI, picture and DICOM series."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

SHAPE = (40, 48, 6)
# Oblique, anisotropic and left-handed: geometry that a careless server gets wrong.
AFFINE = np.array([[-1.2, 0.05, 0.3, 30.0], [0.04, 1.1, -0.4, -25.0], [0.06, 0.1, 4.8, 7.0], [0.0, 0.0, 0.0, 1.0]])


def head(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """A `(X, Y, Z)` int16 volume: an ellipse of tissue, a bright rim, one lesion."""
    generator = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    radius = np.sqrt((x / 0.85) ** 2 + (y / 0.9) ** 2)
    image = np.where(radius < 1, 300.0, 0.0) + np.where((radius > 0.9) & (radius < 1), 500.0, 0.0)
    centre = generator.uniform(-0.35, 0.35, 2)
    image += 400.0 * ((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z / 2) ** 2 < 0.05)
    return (image + generator.normal(0, 12, shape) * (image > 0)).clip(0).astype(np.int16)


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    """Writes a NIfTI file."""
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def write_picture(path: Path, seed: int = 3) -> Path:
    """Writes one slice as an 8-bit PNG of 48 x 40 pixels (width x height)."""
    plane = head(seed)[:, :, 3].astype(np.float32)
    Image.fromarray((255 * plane / plane.max()).astype(np.uint8)).save(path)
    return path


# Directions of rows and columns (LPS): oblique, close to coronal.
OBLIQUE = ((0.0, 0.8, -0.6), (0.6, -0.64, -0.48))
AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
SAGITTAL = ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0))


def write_dicom_series(
    folder: Path,
    seed: int = 4,
    axes: tuple[tuple[float, ...], ...] = OBLIQUE,
    patient: str = "synthetic-1",
    modality: str = "MR",
    step_mm: float = 5.0,
) -> str:
    """Writes a series, one file a slice, and returns its SeriesInstanceUID; a negative step numbers slices against their normal."""
    folder.mkdir(parents=True)
    array, study_uid, series_uid = head(seed), generate_uid(), generate_uid()
    row, column = np.array(axes[0]), np.array(axes[1])
    column = np.cross(np.cross(row, column), row)
    column /= np.linalg.norm(column)
    normal = np.cross(row, column)
    for number in range(array.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study_uid, series_uid, study_uid
        dataset.PatientName, dataset.PatientID, dataset.Modality = "Synthetic", patient, modality
        dataset.SeriesDescription, dataset.InstanceNumber = "made FLAIR", number + 1
        dataset.Rows, dataset.Columns = array.shape[1], array.shape[0]
        dataset.PixelSpacing, dataset.SliceThickness = [1.1, 1.2], 5.0
        dataset.ImageOrientationPatient = [*map(float, row), *map(float, column)]
        dataset.ImagePositionPatient = [float(value) for value in np.array([-30.0, -20.0, 10.0]) + step_mm * number * normal]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 0
        dataset.is_little_endian, dataset.is_implicit_VR = True, False
        dataset.PixelData = np.ascontiguousarray(array[:, :, number].T.astype(np.uint16)).tobytes()
        pydicom.dcmwrite(folder / f"IM{number:04d}", dataset, write_like_original=False)
    return str(series_uid)


def write_bad_images(folder: Path) -> None:
    """One file for each way in which an image can be unusable; the name says which."""
    folder.mkdir()
    (folder / "empty.nii.gz").write_bytes(b"")
    (folder / "text.nii.gz").write_text("this is not an image")
    (folder / "text.nrrd").write_text("this is not an image")
    (folder / "text.png").write_text("this is not an image")
    whole = write_nifti(folder / "whole.nii.gz", head()).read_bytes()
    (folder / "whole.nii.gz").unlink()
    (folder / "truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
    write_nifti(folder / "four_dimensions.nii.gz", np.stack([head(), head()], axis=-1))
    write_nifti(folder / "all_nan.nii.gz", np.full(SHAPE, np.nan, dtype=np.float32))
    write_nifti(folder / "no_voxels.nii.gz", np.zeros((8, 8, 0), dtype=np.int16))
    write_nifti(folder / "constant.nii.gz", np.full(SHAPE, 7, dtype=np.int16))

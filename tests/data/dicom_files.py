"""Real DICOM files for tests, with a geometry that a careless reader gets wrong."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_pixel_data_frame
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless, MRImageStorage, generate_uid

ROW, COLUMN = np.array([0.96, 0.28, 0.0]), np.array([-0.28, 0.96, 0.0]) @ np.array([[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]])
COLUMN = np.cross(np.cross(ROW, COLUMN) / np.linalg.norm(np.cross(ROW, COLUMN)), ROW)
NORMAL = np.cross(ROW, COLUMN)
ORIGIN = np.array([-30.0, 12.0, 5.0])
PIXEL_SPACING, STEP_MM = (0.8, 0.5), 3.5
STUDY = generate_uid()


def write_slice(path: Path, pixels: np.ndarray, position: np.ndarray | None, series: str, **changes: Any) -> FileDataset:
    """Writes one MR (or other) slice; `changes` set or (None) remove attributes."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = changes.pop("sop_class", MRImageStorage)
    meta.MediaStorageSOPInstanceUID = changes.pop("sop_uid", None) or generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.is_little_endian, data.is_implicit_VR = True, False
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID = STUDY, series
    data.Modality, data.SeriesDescription, data.PatientID = "MR", "AX FLAIR", "synthetic"
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.PixelSpacing, data.SliceThickness = list(PIXEL_SPACING), 99.0
    data.ImageOrientationPatient = [round(float(value), 8) for value in (*ROW, *COLUMN)]
    if position is not None:
        data.ImagePositionPatient = [round(float(value), 6) for value in position]
    data.PixelData = pixels.astype("<i2").tobytes()
    for name, value in changes.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    data.save_as(path, write_like_original=False)
    return data


def write_series(
    folder: Path, count: int = 6, series: str | None = None, skip: tuple[int, ...] = (), shape: tuple[int, int] = (5, 7), **changes: Any
) -> np.ndarray:
    """Writes a series whose file names run against its order; returns `(columns, rows, slices)` in spatial order."""
    folder.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(count).integers(-500, 3000, (*shape, count))
    uid = series or generate_uid()
    for index in range(count):
        if index not in skip:
            position = ORIGIN + index * STEP_MM * NORMAL
            write_slice(folder / f"im{(index * 5 + 2) % 7}_{count - index}", array[:, :, index].T, position, uid, **changes)
    return array


def expected_affine() -> np.ndarray:
    """RAS affine of `write_series`, from the standard's equation C.7.6.2.1-1."""
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = ROW * PIXEL_SPACING[1], COLUMN * PIXEL_SPACING[0], NORMAL * STEP_MM
    affine[:3, 3] = ORIGIN
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def item(**values: Any) -> Dataset:
    """A sequence item."""
    found = Dataset()
    for name, value in values.items():
        setattr(found, name, value)
    return found


def groups(**functional: Mapping[str, Any]) -> Dataset:
    """A functional group item, such as `groups(PlanePosition={"ImagePositionPatient": [...]})`."""
    return item(**{f"{name}Sequence": DicomSequence([item(**values)]) for name, values in functional.items()})


def plane(index: float) -> dict[str, Any]:
    """The functional group that places a frame as `write_series` places slice `index`."""
    return {"PlanePosition": {"ImagePositionPatient": [round(float(value), 6) for value in ORIGIN + index * STEP_MM * NORMAL]}}


def shared_geometry() -> dict[str, Any]:
    """Functional groups that all frames share."""
    return {
        "PlaneOrientation": {"ImageOrientationPatient": [round(float(value), 8) for value in (*ROW, *COLUMN)]},
        "PixelMeasures": {"PixelSpacing": list(PIXEL_SPACING), "SliceThickness": 99.0},
    }


def write_frames(
    path: Path, frames: np.ndarray, per_frame: Sequence[Mapping[str, Any]], shared: Mapping[str, Any] | None = None, **changes: Any
) -> FileDataset:
    """Writes one enhanced multi-frame file; `frames` is `(frames, rows, columns)`."""
    data = write_slice(path, frames[0], None, changes.pop("series", None) or generate_uid(), ImageOrientationPatient=None)
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = changes.pop("sop_class", EnhancedMRImageStorage)
    del data.PixelSpacing, data.SliceThickness
    data.NumberOfFrames = len(frames)
    data.SharedFunctionalGroupsSequence = DicomSequence([groups(**(shared_geometry() if shared is None else shared))])
    data.PerFrameFunctionalGroupsSequence = DicomSequence([groups(**values) for values in per_frame])
    data.PixelData = frames.astype("<i2").tobytes()
    for name, value in changes.items():
        setattr(data, name, value)
    data.save_as(path, write_like_original=False)
    return data


def packed_frame(pixels: np.ndarray, compressor: str, folder: Path) -> tuple[bytes, str]:
    """One frame compressed without loss, by Pillow or GDCM, and its transfer syntax; pixels are unsigned."""
    if compressor == "JPEG2000":
        codestream = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint16)).save(codestream, "JPEG2000", irreversible=False, no_jp2=True, num_resolutions=1)
        return codestream.getvalue(), JPEG2000Lossless
    path = folder / f"packed_{compressor}.dcm"
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetFileName(str(path))
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    writer.Execute(sitk.GetImageFromArray(pixels.astype(np.uint16)))
    data = pydicom.dcmread(path)
    path.unlink()
    return next(generate_pixel_data_frame(data.PixelData, 1)), str(data.file_meta.TransferSyntaxUID)


def repack(path: Path, compressor: str) -> None:
    """Compresses the pixels of a file, of one frame or many, without loss."""
    data = pydicom.dcmread(path)
    pixels = data.pixel_array.reshape(-1, data.Rows, data.Columns)
    packed = [packed_frame(frame, compressor, path.parent) for frame in pixels]
    data.PixelRepresentation = 0
    data.PixelData = encapsulate([frame for frame, _ in packed])
    data["PixelData"].is_undefined_length = True
    data.file_meta.TransferSyntaxUID = packed[0][1]
    data.save_as(path, write_like_original=False)

"""Writes a case as a DICOM MR series, marked as synthetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from demo.cases import Case

IMPLEMENTATION_UID = generate_uid(entropy_srcs=["app_cdm demo implementation"])
FIXED_ATTRIBUTES: dict[str, Any] = {
    "SpecificCharacterSet": "ISO_IR 192",
    "ImageType": ["ORIGINAL", "PRIMARY", "M", "SE"],
    "SOPClassUID": MRImageStorage,
    **{f"{name}Date": "20260101" for name in ("Study", "Series", "Acquisition", "Content")},
    **{f"{name}Time": "120000" for name in ("Study", "Series", "Acquisition", "Content")},
    "AccessionNumber": "",
    "Modality": "MR",
    "Manufacturer": "app_cdm demo (synthetic)",
    "ManufacturerModelName": "demo.scanner",
    "ReferringPhysicianName": "",
    "StudyDescription": "SYNTHETIC brain, not a patient",
    "SeriesDescription": "AX FLAIR (synthetic)",
    "PatientName": "SYNTHETIC^CASE",
    "PatientBirthDate": "",
    "PatientSex": "O",
    "PatientComments": "Synthetic image made from the MNI152 template; no person was imaged.",
    "BodyPartExamined": "HEAD",
    "ScanningSequence": ["SE", "IR"],
    "SequenceVariant": "SK",
    "ScanOptions": "",
    "MRAcquisitionType": "2D",
    "SequenceName": "synthetic",
    "RepetitionTime": "9000",
    "EchoTime": "120",
    "InversionTime": "2500",
    "EchoTrainLength": "16",
    "MagneticFieldStrength": "1.5",
    "PatientPosition": "HFS",
    "PositionReferenceIndicator": "",
    "StudyID": "1",
    "SeriesNumber": "3",
    "AcquisitionNumber": "1",
}


def write_series(case: Case, folder: Path) -> list[Path]:
    """Writes one MR Image Storage file a slice; identifiers follow from the case, so they never change.

    Args:
        case: its affine (voxel to RAS) becomes position, orientation and spacing (DICOM is LPS).
        folder: made if absent.

    Returns:
        The files, in slice order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lps = np.asarray(np.diag([-1.0, -1.0, 1.0, 1.0]) @ case.geometry.affine, dtype=np.float64)
    paths = []
    for index in range(case.image.shape[2]):
        path = folder / f"IM{index + 1:04d}.dcm"
        data = _header(case, path, index)
        _set_geometry(data, lps, index)
        _set_pixels(data, case.image[:, :, index])
        data.save_as(path, write_like_original=False)
        paths.append(path)
    return paths


def series_uid(case_id: str) -> str:
    """SeriesInstanceUID of a case, the id by which the label server knows its series."""
    return str(generate_uid(entropy_srcs=[case_id, "series"]))


def study_uid(case_id: str) -> str:
    """StudyInstanceUID of a case, by which viewers open it."""
    return str(generate_uid(entropy_srcs=[case_id, "study"]))


def _header(case: Case, path: Path, index: int) -> FileDataset:
    """Patient, study, series and acquisition attributes."""
    name = case.spec.case_id
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[name, "instance", str(index)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = IMPLEMENTATION_UID
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128, is_implicit_VR=False, is_little_endian=True)
    values = FIXED_ATTRIBUTES | {
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "PatientID": name,
        "StudyInstanceUID": study_uid(name),
        "SeriesInstanceUID": series_uid(name),
        "FrameOfReferenceUID": generate_uid(entropy_srcs=[name, "frame"]),
        "InstanceNumber": str(index + 1),
    }
    for keyword, value in values.items():
        setattr(data, keyword, value)
    return data


def _set_geometry(data: FileDataset, lps: npt.NDArray[np.float64], index: int) -> None:
    """Position, orientation and spacing of a slice from the voxel-to-LPS matrix; X runs along a row, Y down a column."""
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    directions = lps[:3, :3] / spacing
    position = lps[:3, 3] + index * lps[:3, 2]
    data.ImagePositionPatient = [_decimal(v) for v in position]
    data.ImageOrientationPatient = [_decimal(v) for v in (*directions[:, 0], *directions[:, 1])]
    data.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[0])]
    data.SpacingBetweenSlices = _decimal(spacing[2])
    data.SliceThickness = _decimal(0.9 * spacing[2])
    data.SliceLocation = _decimal(float(position @ np.cross(directions[:, 0], directions[:, 1])))


def _decimal(value: float) -> str:
    """A DICOM decimal string of at most 16 characters."""
    text = f"{float(value):.9f}"[:16]
    return text.rstrip("0").rstrip(".") if "." in text else text


def _set_pixels(data: FileDataset, plane: npt.NDArray[np.int16]) -> None:
    """Unsigned 16-bit pixels, rows down, with a display window."""
    pixels = np.ascontiguousarray(plane.T).astype("<u2")
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.Rows, data.Columns = pixels.shape
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.PixelRepresentation = 0
    high = float(np.percentile(pixels[pixels > pixels.mean()], 99)) if pixels.any() else 1.0
    data.WindowCenter, data.WindowWidth = _decimal(round(high / 2)), _decimal(max(round(high), 2))
    data.PixelData = pixels.tobytes()

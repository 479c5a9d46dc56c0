"""What a DICOM file's header says about its slices: place, scale, and what sets one volume of a series apart from another."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom

LOGGER = logging.getLogger(__name__)
NOT_IMAGES = ("SEG", "SR", "PR", "KO", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "REG", "FID")
SPACING_TAGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
MARK_TAGS = ("EchoTime", "TemporalPositionIdentifier", "DiffusionBValue", "InversionTime", "AcquisitionNumber", "ImageType")
GROUP_TAGS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
HEADER_TAGS = [
    *("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "SeriesDescription", "Modality", "InstanceNumber", "Rows", "Columns"),
    *("PatientID", "IssuerOfPatientID", "NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient", "SpacingBetweenSlices"),
    *("SliceThickness", "RescaleSlope", "RescaleIntercept", *SPACING_TAGS, *MARK_TAGS, *GROUP_TAGS),
]

Numbers = tuple[float, ...]
Marks = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class SliceHeader:
    """The header of one slice: a DICOM file, or one frame of it. Numbers that the file lacks or that make no sense are None.

    Attributes:
        patient: digest of Patient ID and its issuer, of the study where there is no Patient ID; empty where there is neither.
        frame: counted from 0.
        position: centre of the first pixel, `(3,)` LPS mm.
        orientation: directions of a row and of a column, `(6,)` LPS cosines.
        pixel_spacing_mm: distance between rows, distance between columns.
        thickness_mm: slice distance that the header claims; only used for a slice that stands alone.
        marks: what may set it apart from another slice at its position: echo time, b-value and so on, by name.
        problem: why its file cannot be used; empty where it can.
    """

    path: Path
    sop_uid: str
    series_uid: str
    study_uid: str
    patient: str
    description: str
    modality: str
    instance_number: int
    shape: tuple[int, int]
    num_frames: int
    frame: int
    is_localizer: bool
    position: Numbers | None
    orientation: Numbers | None
    pixel_spacing_mm: Numbers | None
    thickness_mm: float
    slope: float
    intercept: float
    marks: Marks
    problem: str = ""

    @property
    def name(self) -> str:
        """File name, and frame where there are several; frames are counted from 1 there, as the standard does."""
        return self.path.name + (f", frame {self.frame + 1}" if self.num_frames > 1 else "")

    @property
    def normal(self) -> np.ndarray | None:
        """Unit vector across the slice, `(3,)` LPS: row direction x column direction."""
        if self.orientation is None:
            return None
        return np.asarray(np.cross(self.orientation[:3], self.orientation[3:]))

    @property
    def depth_mm(self) -> float | None:
        """Position along the slice's own normal."""
        if self.position is None or self.normal is None:
            return None
        return float(np.dot(self.position, self.normal))


def read_headers(path: Path) -> list[SliceHeader]:
    """Reads the header of every frame without pixels; none where the file is no DICOM image (other file, report, segmentation)."""
    try:
        data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=HEADER_TAGS)
        if "Rows" not in data or "Columns" not in data or str(data.get("Modality", "")) in NOT_IMAGES:
            return []
        return _headers(path, data)
    except Exception as error:  # pydicom raises many kinds on broken files
        if isinstance(error, OSError) and error.errno is not None:
            raise
        LOGGER.warning("%s: DICOM header cannot be read, file passed over (%s)", path.name, error)
        return []


def _headers(path: Path, data: pydicom.Dataset) -> list[SliceHeader]:
    num_frames = int(data.get("NumberOfFrames") or 1)
    frames = list(data.get("PerFrameFunctionalGroupsSequence") or [])
    problem = ""
    if "MOSAIC" in _words(data, "ImageType"):
        problem = "several frames in one picture (a mosaic): convert the series to one slice a file or to NIfTI (dcm2niix) and send that"
    elif num_frames > 1 and not frames:
        problem = (
            f"several frames in one file ({num_frames}) without a position of each (ultrasound, video, secondary capture): "
            "send one slice a file, or a picture of the frame you want"
        )
    elif frames and len(frames) != num_frames:
        problem = f"describes {len(frames)} frames and has {num_frames}: export the series again"
    if problem or not frames:
        return [_header(path, data, [data], 0, num_frames, problem)]
    shared = list(data.get("SharedFunctionalGroupsSequence") or [])[:1]
    common = _items(shared)
    return [_header(path, data, [*_items([frame]), *common, data], index, num_frames) for index, frame in enumerate(frames)]


def _items(groups: Sequence[pydicom.Dataset]) -> list[pydicom.Dataset]:
    """The first item of every functional group: that is where the attributes are."""
    return [element.value[0] for group in groups for element in group if element.VR == "SQ" and element.value]


def _header(
    path: Path, data: pydicom.Dataset, places: Sequence[pydicom.Dataset], frame: int, num_frames: int, problem: str = ""
) -> SliceHeader:
    """The header of one frame.

    Args:
        path: the file.
        data: what holds for the whole file.
        places: where attributes of the frame are looked for, in this order.
        frame: counted from 0.
        num_frames: of the file.
        problem: why the file cannot be used.
    """
    spacings = (_numbers(places, tag, 2) for tag in SPACING_TAGS)
    thickness = (_numbers(places, tag, 1) for tag in ("SpacingBetweenSlices", "SliceThickness"))
    instance_number = int((_numbers([data], "InstanceNumber", 1) or (0,))[0])
    return SliceHeader(
        path=path,
        sop_uid=str(data.get("SOPInstanceUID", path.name)),
        series_uid=str(data.get("SeriesInstanceUID", "")),
        study_uid=str(data.get("StudyInstanceUID", "")),
        patient=patient_key(data),
        description=str(data.get("SeriesDescription", "")).strip(),
        modality=str(data.get("Modality", "")),
        instance_number=instance_number,
        shape=(int(data.Columns), int(data.Rows)),
        num_frames=num_frames,
        frame=frame,
        is_localizer="LOCALIZER" in _words(data, "ImageType"),
        position=_numbers(places, "ImagePositionPatient", 3),
        orientation=_numbers(places, "ImageOrientationPatient", 6),
        pixel_spacing_mm=next((value for value in spacings if value is not None), None),
        thickness_mm=next((value[0] for value in thickness if value is not None and value[0] > 0), 1.0),
        slope=(_numbers(places, "RescaleSlope", 1) or (1.0,))[0],
        intercept=(_numbers(places, "RescaleIntercept", 1) or (0.0,))[0],
        marks=_marks(places, instance_number if num_frames > 1 else None),
        problem=problem,
    )


def patient_key(data: pydicom.Dataset) -> str:
    """Whose an image is, without saying who: a digest of Patient ID and issuer, else of the study; empty where there is neither."""
    return patient_digest(*(str(data.get(name) or "").strip() for name in ("PatientID", "IssuerOfPatientID", "StudyInstanceUID")))


def patient_digest(patient: str, issuer: str, study: str) -> str:
    """See `patient_key`, of the values themselves."""
    whose = f"patient\n{patient}\n{issuer}" if patient else f"study\n{study}"
    return hashlib.sha256(whose.encode(errors="replace")).hexdigest()[:32] if patient or study else ""


def _marks(places: Sequence[pydicom.Dataset], instance_number: int | None) -> Marks:
    """Name and value of all that may set volumes of one series apart, the most telling first."""
    echo = _numbers(places, "EffectiveEchoTime", 1) or _numbers(places, "EchoTime", 1)
    time = _numbers(places, "TemporalPositionIndex", 1) or _numbers(places, "TemporalPositionIdentifier", 1)
    acquisition = _numbers(places, "FrameAcquisitionNumber", 1) or _numbers(places, "AcquisitionNumber", 1)
    numbers = {
        "EchoTime": echo,
        "TemporalPosition": time,
        "DiffusionBValue": _numbers(places, "DiffusionBValue", 1),
        "InversionTime": _numbers(places, "InversionTime", 1),
        "AcquisitionNumber": acquisition,
        "InstanceNumber": None if instance_number is None else (float(instance_number),),
    }
    stack = next((str(place.StackID) for place in places if "StackID" in place), None)
    frame_type = next(("-".join(words) for place in places if (words := _words(place, "FrameType") or _words(place, "ImageType"))), None)
    texts = {"StackID": stack, "ImageType": frame_type}
    return tuple(
        [(name, value) for name, value in texts.items() if value is not None and name == "StackID"]
        + [(name, f"{value[0]:g}") for name, value in numbers.items() if value is not None]
        + [(name, value) for name, value in texts.items() if value is not None and name == "ImageType"]
    )


def _words(data: pydicom.Dataset, tag: str) -> list[str]:
    value = data.get(tag)
    return [] if value is None else [value] if isinstance(value, str) else [str(word) for word in value]


def _numbers(places: Sequence[pydicom.Dataset], tag: str, count: int) -> Numbers | None:
    """A numeric attribute of exactly `count` finite values, from the first place that has it; or None."""
    found = next((place.get(tag) for place in places if place.get(tag) is not None), None)
    try:
        values = tuple(float(value) for value in np.atleast_1d(np.asarray(found, dtype=np.float64)))
    except (ValueError, TypeError, OverflowError):
        return None
    return values if len(values) == count and all(math.isfinite(value) for value in values) else None

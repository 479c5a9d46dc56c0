"""A mask as DICOM SEG: one binary segment a class, on the very instances that it was made from."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
from highdicom.seg import Segmentation as SegmentationObject
from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid
from skimage.color import rgb2lab

from app_cdm.data.dicom_codes import SegmentCode, code_of
from app_cdm.data.dicom_source import to_planes
from app_cdm.data.grid import VolumeError

MANUFACTURER = "app_cdm"
DEVICE = "app_cdm weakly supervised segmentation"
SERIES_NUMBER = 901
MAX_LONG_STRING = 64
# Colours that differ for everybody, as red, green, blue; segment 1 first.
COLOURS = ((230, 25, 75), (0, 130, 200), (245, 130, 48), (60, 180, 75), (145, 30, 180), (70, 240, 240), (240, 50, 230), (210, 245, 60))
LEARNED = Code("123110", "DCM", "Artificial Intelligence")
HEADER_ERRORS = (AttributeError, KeyError, TypeError, ValueError)


@dataclass(frozen=True)
class Algorithm:
    """What drew the segments.

    Attributes:
        name: of the method.
        version: of the weights.
    """

    name: str
    version: str


@dataclass(frozen=True)
class Authorship:
    """Of whom and of what an object is; equal ones give equal UIDs, so that nothing is stored twice.

    Attributes:
        identity: says which result this is; series, instance and tracking UIDs follow from it.
        algorithm: None where a person drew or changed the segments.
        creator: who accepted or submitted it.
        description: of the series, as study lists show it.
        software: name and version of what wrote the object.
    """

    identity: str
    algorithm: Algorithm | None = None
    creator: str = ""
    description: str = "Segmentation"
    software: str = "app_cdm"

    def uid(self, *parts: str) -> str:
        """A UID that follows from the identity."""
        return str(generate_uid(entropy_srcs=["app_cdm", self.identity, *parts]))


@dataclass(frozen=True)
class Segments:
    """Which classes are in a mask.

    Attributes:
        values: name -> value in the mask; in the object they are numbered alphabetically from 1.
        codes: the user's codes, by name; the rest follow from their names.
    """

    values: Mapping[str, int]
    codes: Mapping[str, SegmentCode] = field(default_factory=dict)


def make_segmentation(mask: np.ndarray, affine: np.ndarray, sources: Sequence[Dataset], segments: Segments, author: Authorship) -> Dataset:
    """Makes a DICOM SEG of a mask.

    A segment without a voxel is described, and has no frame: it was looked for, and not found. Frames without a voxel are left out.

    Args:
        mask: `(X, Y, Z)` integers, on the grid of the series, turned or flipped at most.
        affine: `(4, 4)`, voxel index to RAS mm.
        sources: of `app_cdm.data.dicom_source.read_sources`.
        segments: what the mask's values mean; other values are left out.
        author: whose it is.

    Raises:
        VolumeError: the mask is empty or not on the series, or its headers do not allow a SEG.
    """
    names = sorted(segments.values)
    if not names or len(names) > np.iinfo(np.uint8).max:
        raise VolumeError(f"{len(names)} segments: a DICOM SEG holds 1 to 255 of them here")
    numbers = np.zeros(256, dtype=np.uint8)
    for number, name in enumerate(names, start=1):
        if not 1 <= segments.values[name] <= np.iinfo(np.uint8).max:
            raise VolumeError(f"segment {name!r} has mask value {segments.values[name]}: must be 1 to 255")
        numbers[segments.values[name]] = number
    planes = numbers[np.ascontiguousarray(to_planes(mask, affine, sources), dtype=np.uint8)]
    if not planes.any():
        raise VolumeError("the mask is empty: there is nothing that a DICOM SEG could hold")
    try:
        made = SegmentationObject(
            nameless(sources),
            planes,
            SegmentationTypeValues.BINARY,
            [_describe(number, name, segments, author) for number, name in enumerate(names, start=1)],
            series_instance_uid=author.uid("series"),
            series_number=SERIES_NUMBER,
            sop_instance_uid=author.uid("instance"),
            instance_number=1,
            content_label="SEGMENTATION",
            content_description=long_string(author.description),
            content_creator_name=person_name(author.creator),
            **equipment(author),
        )
    except HEADER_ERRORS as error:
        raise VolumeError(f"the headers of the DICOM series do not allow a DICOM SEG ({error}): take the mask as NIfTI") from error
    finish(made, sources)
    return made


def equipment(author: Authorship) -> dict[str, Any]:
    """What made an object, for the constructors of highdicom."""
    return {
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": DEVICE,
        "software_versions": long_string(author.software),
        "device_serial_number": long_string(author.algorithm.version if author.algorithm else author.software),
        "series_description": long_string(author.description),
    }


def nameless(sources: Sequence[Dataset], indices: Iterable[int] | None = None) -> list[Dataset]:
    """The sources, or some of them, as highdicom wants them: patient and study in the first, whose lack of a first name it need not know.

    Args:
        sources: of `read_sources`.
        indices: which; all by default.
    """
    chosen = [sources[index] for index in (range(len(sources)) if indices is None else indices)]
    first = copy.deepcopy(sources[0])
    first.PatientName = ""
    for keyword in ("SOPClassUID", "SOPInstanceUID", "ImagePositionPatient"):
        if keyword in chosen[0]:
            setattr(first, keyword, chosen[0][keyword].value)
    return [first, *chosen[1:]]


def finish(made: Dataset, sources: Sequence[Dataset]) -> None:
    """Says what highdicom leaves out: the character set, the patient's name as it is, and the body part of the source."""
    made.SpecificCharacterSet = "ISO_IR 192"
    made.PatientName = sources[0].PatientName
    for element in made:
        if element.VR == "PN" and element.value:  # encoded anew: a name remembers the character set that it was read in
            element.value = [str(name) for name in element.value] if element.VM > 1 else str(element.value)
    if sources[0].get("BodyPartExamined"):
        made.BodyPartExamined = sources[0].BodyPartExamined
    if sources[0].get("Laterality") in ("L", "R"):
        made.Laterality = sources[0].Laterality


def long_string(text: str) -> str:
    """A text that a DICOM long string can carry: 64 characters, none of them a backslash or invisible."""
    return re.sub(r"[\x00-\x1f\x7f\\]", " ", text).strip()[:MAX_LONG_STRING]


def person_name(text: str) -> str | None:
    """A free name as a DICOM person name, all of it family name."""
    plain = re.sub(r"[\^=]", " ", long_string(text)).strip()[: MAX_LONG_STRING - 1]
    return f"{plain}^" if plain else None


def _describe(number: int, name: str, segments: Segments, author: Authorship) -> SegmentDescription:
    code, algorithm = code_of(name, segments.codes), author.algorithm
    identification = None
    if algorithm is not None:
        identification = AlgorithmIdentificationSequence(
            long_string(algorithm.name), LEARNED, long_string(algorithm.version), source=MANUFACTURER
        )
    description = SegmentDescription(
        segment_number=number,
        segment_label=long_string(name),
        segmented_property_category=code.category,
        segmented_property_type=code.type,
        algorithm_type=SegmentAlgorithmTypeValues.MANUAL if algorithm is None else SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=identification,
        tracking_uid=author.uid("segment", name),
        tracking_id=long_string(f"{author.identity} {name}"),
    )
    description.RecommendedDisplayCIELabValue = _cielab(COLOURS[(number - 1) % len(COLOURS)])
    return description


def _cielab(colour: tuple[int, int, int]) -> list[int]:
    """CIELab as DICOM encodes it: L of 0 to 100, a and b of -128 to 127, each on 16 bits."""
    lab = rgb2lab(np.array([[colour]]) / 255)[0, 0]
    scaled = np.array([lab[0] / 100, (lab[1] + 128) / 255, (lab[2] + 128) / 255]) * 65535
    return [int(value) for value in np.rint(scaled)]

"""A map as DICOM Parametric Map: 32-bit floats on the very instances that it was made from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from highdicom.pm import DerivedPixelContrastValues, ParametricMap, RealWorldValueMapping
from highdicom.sr import CodedConcept
from pydicom import Dataset
from pydicom.sr.coding import Code

from app_cdm.data.dicom_seg import HEADER_ERRORS, Authorship, equipment, finish, long_string, nameless, person_name
from app_cdm.data.dicom_source import to_planes
from app_cdm.data.grid import VolumeError

SERIES_NUMBER = 902
FLOAT_BYTES = 4
WHOLE_BYTES = 256 * 1024**2
SEGMENTATION = Code("113076", "DCM", "Segmentation")
SOURCE_IMAGE = Code("121322", "DCM", "Source image for image processing operation")
NO_UNITS = Code("1", "UCUM", "no units")


def make_parametric_map(values: np.ndarray, affine: np.ndarray, sources: Sequence[Dataset], class_name: str, author: Authorship) -> Dataset:
    """Makes a DICOM Parametric Map of one class's map.

    Every slice has a frame, along the slice normal: OHIF 3.10 takes frames for slices by their number alone. In a map that would be larger
    than 256 MiB so, slices that are 0 throughout are left out; of an empty one the first remains.

    Args:
        values: `(X, Y, Z)` in [0, 1], on the grid of the series, turned or flipped at most.
        affine: `(4, 4)`, voxel index to RAS mm.
        sources: of `app_cdm.data.dicom_source.read_sources`.
        class_name: whose map it is.
        author: whose it is.

    Raises:
        VolumeError: the map is not on the series, or its headers do not allow a Parametric Map.
    """
    planes = to_planes(values, affine, sources)
    held = np.arange(len(planes))
    if planes.size * FLOAT_BYTES > WHOLE_BYTES:
        held = np.flatnonzero(planes.reshape(len(planes), -1).any(axis=1))
        held = held if len(held) else np.array([0])
    name = long_string(f"map of {class_name}")
    try:
        made = ParametricMap(
            nameless(sources, held),
            np.ascontiguousarray(planes[held], dtype=np.float32),
            series_instance_uid=author.uid("map series", class_name),
            series_number=SERIES_NUMBER,
            sop_instance_uid=author.uid("map instance", class_name),
            instance_number=1,
            contains_recognizable_visual_features=False,
            real_world_value_mappings=[
                RealWorldValueMapping(
                    lut_label=name[:16], lut_explanation=name, unit=NO_UNITS, value_range=(0.0, 1.0), slope=1, intercept=0
                )
            ],
            window_center=0.5,
            window_width=1.0,
            derived_pixel_contrast=DerivedPixelContrastValues.QUANTITY,
            content_label="MAP",
            content_description=long_string(author.description),
            content_creator_name=person_name(author.creator),
            **equipment(author),
        )
    except HEADER_ERRORS as error:
        raise VolumeError(
            f"the headers of the DICOM series do not allow a DICOM Parametric Map ({error}): take the map as NIfTI"
        ) from error
    for frame, index in zip(made.PerFrameFunctionalGroupsSequence, held, strict=True):
        frame.DerivationImageSequence = [_derived_from(sources[index])]
    finish(made, sources)
    return made


def _derived_from(source: Dataset) -> Dataset:
    """Which instance a frame lies on, pixel by pixel; highdicom leaves it out."""
    reference, derivation = Dataset(), Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    reference.PurposeOfReferenceCodeSequence = [CodedConcept.from_code(SOURCE_IMAGE)]
    reference.SpatialLocationsPreserved = "YES"
    derivation.DerivationCodeSequence = [CodedConcept.from_code(SEGMENTATION)]
    derivation.SourceImageSequence = [reference]
    return derivation

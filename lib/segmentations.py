"""Final labels of a DICOMweb server: stored as DICOM SEG, with names, codes and origin."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import requests
from monailabel.datastore.dicom import DICOMWebDatastore

from app_cdm.data.dicom_codes import read_codes
from app_cdm.data.dicom_seg import Authorship, Segments, make_segmentation
from app_cdm.data.dicom_source import read_sources
from app_cdm.data.volume import Volume

logger = logging.getLogger(__name__)

# In the folder of published models: codes of classes that the app does not know, or knows otherwise.
CODES_FILE = "segment_codes.json"


def store_segmentation(
    datastore: DICOMWebDatastore, image_id: str, mask: Volume, values: Mapping[str, int], codes_file: Path, author: Authorship
) -> str:
    """Sends a mask to the DICOMweb server that its image came from.

    Args:
        datastore: the cache of the server; it has fetched the image.
        image_id: series of the image.
        mask: `(X, Y, Z)` on the image's grid, not empty.
        values: name -> value in the mask.
        codes_file: the user's SNOMED CT codes.
        author: whose it is; what has been sent before is not stored again.

    Returns:
        Series Instance UID of the segmentation.

    Raises:
        VolumeError: the mask does not lie on the series, or its headers do not allow a DICOM SEG.
        CodesError: the file of codes is damaged.
        requests.RequestException: the server does not take it.
    """
    folder = Path(datastore._datastore.image_path()) / image_id
    sources = read_sources(sorted(path for path in folder.iterdir() if path.is_file()))
    made = make_segmentation(mask.array, mask.affine, sources, Segments(values, read_codes(codes_file)), author)
    answer = datastore._client.store_instances([made])
    failed = answer.get("FailedSOPSequence") if answer is not None else None
    if failed:
        raise requests.RequestException(f"it refused the segmentation, with reason {failed[0].get('FailureReason')}")
    logger.info("Segmentation of %s stored as series %s", image_id, made.SeriesInstanceUID)
    return str(made.SeriesInstanceUID)


def segment_values(mask: np.ndarray, label_info: object, class_names: Sequence[str]) -> dict[str, int]:
    """Name -> value of the segments of a submitted label.

    Args:
        mask: the label.
        label_info: `[{"name": ...}, ...]` in the order of the values from 1, as viewers send it; anything else is ignored.
        class_names: the classes there are, alphabetically: names of values that nobody named.

    Returns:
        Everything that was named, and every further value that is in the mask.
    """
    segments = label_info if isinstance(label_info, list) else []
    named = {value: str(item["name"]) for value, item in enumerate(segments, start=1) if isinstance(item, Mapping) and item.get("name")}
    if not segments:
        named = {value: name for value, name in enumerate(class_names, start=1) if (mask == value).any()}
    unnamed = {int(value): f"segment {value}" for value in np.unique(mask) if value and value not in named}
    values: dict[str, int] = {}
    for value, name in sorted({**named, **unnamed}.items()):
        values[name if name not in values else f"{name} {value}"] = value
    return values


def drawn_by(user: str) -> Authorship:
    """Authorship of a label that somebody drew or changed in a viewer; each is one of its own."""
    return Authorship(identity=f"label {uuid.uuid4()}", creator=user, description="Label submitted from a viewer")

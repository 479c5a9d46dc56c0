"""What a DICOMweb server holds, asked at most once in a while: its image series, and which segmentations refer to them."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dicomweb_client import DICOMwebClient
from pydicom.dataset import Dataset

from app_cdm.data.dicom_header import patient_key
from lib.dicomweb.modalities import is_listed, searches

PATIENT_FIELDS = ["PatientID", "IssuerOfPatientID"]


@dataclass(frozen=True)
class ImageSeries:
    """An image series.

    Attributes:
        uid: SeriesInstanceUID, the id of the image.
        study: StudyInstanceUID.
        num_instances: how many there are, if the PACS says so.
        patient: digest of whose it is, see `patient_key`; empty if the PACS does not say.
    """

    uid: str
    study: str
    num_instances: int | None
    patient: str = ""


@dataclass(frozen=True)
class SegmentationSeries:
    """A series of DICOM segmentations.

    Attributes:
        uid: SeriesInstanceUID.
        study: StudyInstanceUID.
        instance: SOPInstanceUID of the newest one in it.
        image: the series that it was drawn on.
        time: when it was made, as text that sorts.
    """

    uid: str
    study: str
    instance: str
    image: str
    time: str


class Archive:
    """Answers of the PACS, kept for some seconds; one thread asks, the others wait for its answer.

    Args:
        client: the PACS.
        modalities: what is an image; empty for every kind.
        search_filter: further conditions on series.
        refresh_s: how old an answer may be.
    """

    def __init__(self, client: DICOMwebClient, modalities: Sequence[str], search_filter: Mapping[str, Any], refresh_s: float) -> None:
        self._client, self._modalities, self._filter, self._refresh_s = client, modalities, search_filter, refresh_s
        self._asking = threading.RLock()
        self._images: tuple[float, dict[str, ImageSeries]] | None = None
        self._segmentations: tuple[float, list[SegmentationSeries]] | None = None
        # What a stored segmentation refers to never changes, and its metadata is long.
        self._read: dict[tuple[str, int | None], SegmentationSeries | None] = {}

    def forget(self) -> None:
        """Makes the next question go to the PACS."""
        with self._asking:
            self._images = self._segmentations = None

    def images(self) -> dict[str, ImageSeries]:
        """Image series by SeriesInstanceUID."""
        with self._asking:
            if self._images is None or time.monotonic() - self._images[0] > self._refresh_s:
                found: dict[str, ImageSeries] = {}
                for search in searches(self._modalities, self._filter):
                    for item in map(Dataset.from_json, self._client.search_for_series(search_filters=search, fields=PATIENT_FIELDS)):
                        if is_listed(str(item.get("Modality", "")), self._modalities):
                            found[str(item.SeriesInstanceUID)] = _image(item)
                self._images = time.monotonic(), found
            return dict(self._images[1])

    def segmentations(self) -> list[SegmentationSeries]:
        """Segmentations of the listed images, the oldest first."""
        with self._asking:
            if self._segmentations is None or time.monotonic() - self._segmentations[0] > self._refresh_s:
                items = map(Dataset.from_json, self._client.search_for_series(search_filters={"Modality": "SEG"}))
                found = [self._segmentation(item) for item in items if item.get("Modality") == "SEG"]
                self._segmentations = time.monotonic(), sorted(filter(None, found), key=lambda item: (item.time, item.uid))
            segmentations = self._segmentations[1]
        images = self.images()
        return [item for item in segmentations if item.image in images]

    def _segmentation(self, item: Dataset) -> SegmentationSeries | None:
        uid, study = str(item.SeriesInstanceUID), str(item.StudyInstanceUID)
        key = uid, _count(item)
        if key not in self._read:
            described = [Dataset.from_json(entry) for entry in self._client.retrieve_series_metadata(study, uid)]
            drawn = [entry for entry in described if entry.get("ReferencedSeriesSequence")]
            self._read[key] = _segmentation(max(drawn, key=_time)) if drawn else None
        return self._read[key]


def _image(item: Dataset) -> ImageSeries:
    return ImageSeries(str(item.SeriesInstanceUID), str(item.StudyInstanceUID), _count(item), patient_key(item))


def _segmentation(item: Dataset) -> SegmentationSeries:
    image = str(item.ReferencedSeriesSequence[0].SeriesInstanceUID)
    return SegmentationSeries(str(item.SeriesInstanceUID), str(item.StudyInstanceUID), str(item.SOPInstanceUID), image, _time(item))


def _count(item: Dataset) -> int | None:
    count = item.get("NumberOfSeriesRelatedInstances")
    return int(count) if count is not None else None


def _time(item: Dataset) -> str:
    """When an instance was made: of its content, else of its series."""
    days = [str(item.get(f"{name}Date") or "") for name in ("Content", "Series")]
    clocks = [str(item.get(f"{name}Time") or "") for name in ("Content", "Series")]
    return next((day + clock.partition(".")[0].ljust(6, "0") + clock[6:] for day, clock in zip(days, clocks, strict=True) if day), "")

"""What a DICOMweb server holds, asked at most once in a while: its image series, and which segmentations refer to them."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import requests
from dicomweb_client import DICOMwebClient
from pydicom.dataset import Dataset

from app_cdm.data.dicom_header import patient_digest
from app_cdm.data.qido import JsonDataset, search_series, text_of
from lib.dicomweb.kept import Kept
from lib.dicomweb.modalities import is_listed, searches

logger = logging.getLogger(__name__)

# What reading malformed metadata raises.
MALFORMED = (AttributeError, KeyError, IndexError, TypeError, ValueError)
FIELDS = ["PatientID", "IssuerOfPatientID", "SeriesDescription"]


@dataclass(frozen=True)
class ImageSeries:
    """An image series.

    Attributes:
        uid: SeriesInstanceUID, the id of the image.
        study: StudyInstanceUID.
        num_instances: how many there are, if the PACS says so.
        patient: digest of whose it is, see `patient_key`; empty if the PACS does not say.
        description: SeriesDescription; may be empty.
        modality: such as `MR`.
    """

    uid: str
    study: str
    num_instances: int | None
    patient: str = ""
    description: str = ""
    modality: str = ""


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
    """Answers of the PACS, see `Kept`.

    Args:
        client: the PACS.
        modalities: what is an image; empty for every kind.
        search_filter: further conditions on series.
        refresh_s: how old an answer of a PACS that is quick may be.
    """

    def __init__(self, client: DICOMwebClient, modalities: Sequence[str], search_filter: Mapping[str, Any], refresh_s: float) -> None:
        self._client, self._modalities, self._filter, self._refresh_s = client, modalities, search_filter, refresh_s
        self._images = Kept(self._find_images, refresh_s)
        self._segmentations = Kept(self._find_segmentations, refresh_s)
        self._lock = threading.Lock()  # of what is found between two lists
        # Series asked for by themselves: when, and what there was.
        self._single: dict[str, tuple[float, ImageSeries | None]] = {}
        # Images whose segmentations were asked for by themselves: when, and what there was.
        self._drawn_on: dict[str, tuple[float, list[SegmentationSeries]]] = {}
        # What a stored segmentation refers to never changes, and its metadata is long.
        self._read: dict[tuple[str, int | None], SegmentationSeries | None] = {}
        self._left_out: set[tuple[str, int | None]] = set()  # that the log tells of

    def forget(self) -> None:
        """Makes the next question go to the PACS."""
        self._images.forget()
        self._segmentations.forget()
        with self._lock:
            self._single, self._drawn_on = {}, {}

    def forget_series(self, uid: str) -> None:
        """Makes the next question for one series go to the PACS."""
        with self._lock:
            self._single.pop(uid, None)

    def images(self) -> Mapping[str, ImageSeries]:
        """Image series by SeriesInstanceUID; of a slow PACS as they were a while ago, with those that `find` has found since."""
        listed = self._images.get()
        newer = {uid: series for uid, (_, series) in list(self._single.items()) if series is not None and listed.get(uid) != series}
        return {**listed, **newer} if newer else listed

    def known(self, uid: str) -> ImageSeries | None:
        """One of `images`, for somebody who looks at each of them."""
        return self._single.get(uid, (0.0, None))[1] or self._images.get().get(uid)

    def find(self, uid: str) -> ImageSeries | None:
        """One image series as the PACS has it now, however old the list is; None if there is no such series."""
        # A PACS may take anything else for a pattern, or refuse it; and names of files are made of it.
        if not re.fullmatch(r"[0-9][0-9.]{0,63}", uid):
            return None
        asked, series = self._single.get(uid, (float("-inf"), None))
        if time.monotonic() - asked > self._refresh_s:
            asked, series = time.monotonic(), None
            for item in search_series(self._client, {**self._filter, "SeriesInstanceUID": uid}, FIELDS):
                if text_of(item, "SeriesInstanceUID") == uid and is_listed(text_of(item, "Modality"), self._modalities):
                    series = _image(item)
            with self._lock:
                self._single[uid] = asked, series
        return series

    def segmentations(self) -> list[SegmentationSeries]:
        """Segmentations of the listed images, the oldest first; of a slow PACS as `images` are."""
        images, listed, newer = self.images(), self._segmentations.get(), dict(self._drawn_on)
        found = [item for item in listed if item.image not in newer] + [item for _, items in newer.values() for item in items]
        return sorted((item for item in found if item.image in images), key=_age)

    def segmentations_of(self, image: str) -> list[SegmentationSeries]:
        """Segmentations of one image as the PACS has them now, however old the list is, the oldest first."""
        series = self.find(image)
        if series is None:
            return []
        began = time.monotonic()
        items = [item for item in self._search_segmentations(series.study) if item.image == image]
        with self._lock:
            self._drawn_on[image] = began, items
        return items

    def _find_images(self) -> dict[str, ImageSeries]:
        began, found = time.monotonic(), {}
        for search in searches(self._modalities, self._filter):
            for item in search_series(self._client, search, FIELDS):
                if is_listed(text_of(item, "Modality"), self._modalities):
                    found[text_of(item, "SeriesInstanceUID")] = _image(item)
        with self._lock:
            self._single = {uid: entry for uid, entry in self._single.items() if entry[0] > began}
        return found

    def _find_segmentations(self) -> list[SegmentationSeries]:
        began = time.monotonic()
        found = self._search_segmentations()
        with self._lock:
            self._drawn_on = {image: entry for image, entry in self._drawn_on.items() if entry[0] > began}
        return found

    def _search_segmentations(self, study: str | None = None) -> list[SegmentationSeries]:
        """Segmentations in the PACS or in one study, which is that of the image (PS3.3 C.12.2), the oldest first."""
        items = search_series(self._client, {"Modality": "SEG"}, study=study)
        found = [self._segmentation(item) for item in items if text_of(item, "Modality") == "SEG"]
        return sorted(filter(None, found), key=_age)

    def _segmentation(self, item: JsonDataset) -> SegmentationSeries | None:
        uid, study = text_of(item, "SeriesInstanceUID"), text_of(item, "StudyInstanceUID")
        key = uid, _count(item)
        if key not in self._read:
            try:
                described = [Dataset.from_json(entry) for entry in self._client.retrieve_series_metadata(study, uid)]
                drawn = [entry for entry in described if entry.get("ReferencedSeriesSequence")]
                self._read[key] = _segmentation(max(drawn, key=_time)) if drawn else None
            except (requests.HTTPError, *MALFORMED) as error:
                if key not in self._left_out:
                    logger.warning("Segmentation series %s is left out: %r", uid, error)
                self._left_out.add(key)
                if isinstance(error, requests.RequestException):  # the next answer may be a better one
                    return None
                self._read[key] = None
        return self._read[key]


def _image(item: JsonDataset) -> ImageSeries:
    study = text_of(item, "StudyInstanceUID")
    patient = patient_digest(text_of(item, "PatientID"), text_of(item, "IssuerOfPatientID"), study)
    described = text_of(item, "SeriesDescription"), text_of(item, "Modality")
    return ImageSeries(text_of(item, "SeriesInstanceUID"), study, _count(item), patient, *described)


def _segmentation(item: Dataset) -> SegmentationSeries:
    image = str(item.ReferencedSeriesSequence[0].SeriesInstanceUID)
    return SegmentationSeries(str(item.SeriesInstanceUID), str(item.StudyInstanceUID), str(item.SOPInstanceUID), image, _time(item))


def _age(item: SegmentationSeries) -> tuple[str, str]:
    return item.time, item.uid


def _count(item: JsonDataset) -> int | None:
    count = text_of(item, "NumberOfSeriesRelatedInstances")
    return int(count) if count else None


def _time(item: Dataset) -> str:
    """When an instance was made: of its content, else of its series."""
    days = [str(item.get(f"{name}Date") or "") for name in ("Content", "Series")]
    clocks = [str(item.get(f"{name}Time") or "") for name in ("Content", "Series")]
    return next((day + clock.partition(".")[0].ljust(6, "0") + clock[6:] for day, clock in zip(days, clocks, strict=True) if day), "")

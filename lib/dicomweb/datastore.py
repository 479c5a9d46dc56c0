"""MONAI Label's DICOMweb datastore with what it gets wrong mended: listing, fetching, and labels that come back."""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import requests
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import LocalDatastore
from pydicom.dataset import Dataset

from app_cdm.data.header import read_grid
from app_cdm.data.qido import IMAGE_MODALITIES
from app_cdm.data.volume import VolumeError, read_volume, write_map, write_mask
from lib.datastore import title_of, told
from lib.dicomweb.archive import Archive, ImageSeries, SegmentationSeries
from lib.dicomweb.segmentation import read_segmentation
from lib.dicomweb.segments import name_segments
from lib.dicomweb.waiting import limit_waiting
from lib.grids import KnownGrids
from lib.index import FINAL, FolderIndex
from lib.server.errors import LIST_IMAGES, UnknownNameError

logger = logging.getLogger(__name__)

# Key of a final label's info: segmentations in the PACS that it stands for, or is newer than.
SEEN = "segmentations"
# Folder in the cache; hidden, so that nothing in it is taken for an image.
GRIDS = ".grids"


class PacsDatastore(DICOMWebDatastore, FolderIndex):  # type: ignore[misc]  # monailabel ships no types
    """Images are series of the PACS, by SeriesInstanceUID; final labels are its segmentations.

    A series is fetched on first use, whole or not at all, and again when its number of instances changes. It is converted
    as one of a folder is, so that the same files give the same voxel grid. Where that is another grid than before, what was
    said of the slices before is forgotten.
    """

    archive: Archive
    class_names: Callable[[], Sequence[str]]
    fetching: dict[str, Any]
    left_out: dict[str, str]

    def list_images(self) -> list[str]:
        """Every image series of the chosen modalities but those that turned out to make no volume."""
        return [image for image in self.archive.images() if image not in self.left_out]

    def has_image(self, image_id: str) -> bool:
        """Whether an image is listed, or would be if the list were made now."""
        return image_id not in self.left_out and self.archive.find(image_id) is not None

    def rescan(self) -> None:
        """Asks the PACS anew, and gives series that were left out another chance from a fresh copy."""
        self.archive.forget()
        for image in list(self.left_out):
            with self._alone(image):
                shutil.rmtree(self._images / image, ignore_errors=True)
                self.left_out.pop(image, None)

    def patients(self) -> dict[str, str]:
        """Image -> whose it is, as a digest; of series whose PACS says so."""
        return {image: series.patient for image, series in self.archive.images().items() if series.patient}

    def title(self, image_id: str) -> str:
        """What an image is called, if the PACS says so."""
        series = self.archive.known(image_id)
        return title_of(series.description, series.modality) if series else ""

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Images with a segmentation in the PACS, each once."""
        return list(dict.fromkeys(item.image for item in self.archive.segmentations()))

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Images without one."""
        labelled = set(self.get_labeled_images())
        return [image for image in self.list_images() if image not in labelled]

    def get_image_uri(self, image_id: str) -> str:
        """Path of the image as NIfTI; fetches and converts the series where the cache lacks it.

        Raises:
            UnknownNameError: the PACS has no such image.
            VolumeError: the series cannot be read as one volume.
            requests.RequestException: the PACS does not answer, or not with the whole series; another time it may.
        """
        with self._alone(image_id):
            series = self.archive.find(image_id)
            if series is None:
                raise UnknownNameError("image", image_id, hint=LIST_IMAGES)
            folder, target = self._images / image_id, self._images / f"{image_id}.nii.gz"
            if not folder.is_dir() or series.num_instances not in (None, len(list(folder.iterdir()))):
                self._fetch(series, folder, target)
            if not target.exists():
                self._convert(series, folder, target)
            return str(target)

    def _let_go(self, image_id: str) -> None:
        """Only the copy in the cache is removed, and the labels there: the image stays in the PACS, and so do its tags."""
        self.remove_labels(image_id)

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """Path of a label, on its image's voxel grid, or an empty string.

        Of a final one, the newest: that which was submitted here, or a segmentation that appeared in the PACS since.

        Raises:
            VolumeError: the segmentation cannot be placed on its image.
        """
        if label_tag == FINAL:
            self._fetch_label(image_id or label_id)
        return str(LocalDatastore.get_label_uri(self, label_id, label_tag))

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        """Tags under which an image has a label; those of the PACS need not have been fetched."""
        found: dict[str, str] = super().get_labels_by_image_id(image_id)
        return found | ({FINAL: image_id} if image_id in self.get_labeled_images() else {})

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any], **options: Any) -> str:
        """Keeps a label here; a final one is the newest there is, whatever the PACS holds by now."""
        self.get_image_uri(image_id)
        label_id = str(FolderIndex.save_label(self, image_id, label_filename, label_tag, label_info))
        if label_tag == FINAL:
            self.note_segmentations(image_id)
        return label_id

    def note_segmentations(self, image_id: str) -> None:
        """The final label that is kept here is the newest there is."""
        seen = [item.uid for item in self.archive.segmentations_of(image_id)]
        self.update_label_info(image_id, FINAL, {SEEN: seen})

    def status(self) -> dict[str, Any]:
        """Counts for `/info/`."""
        tags = self.label_tags()
        labelled = len(self.get_labeled_images())
        counts = {"total": len(self.list_images()), "completed": labelled, "label_tags": tags | ({FINAL: labelled} if labelled else {})}
        return counts | told(self.left_out)

    def _download_labeled_data(self) -> None:
        for image in self.get_labeled_images():
            self.get_image_uri(image)
            self._fetch_label(image)

    @property
    def _images(self) -> Path:
        return Path(self._datastore.image_path())

    def _alone(self, image_id: str) -> Any:
        """Held while a series or its label is brought here, so that nobody reads half of it."""
        return self.fetching.setdefault(image_id, threading.RLock())

    def _fetch(self, series: ImageSeries, folder: Path, converted: Path) -> None:
        """Every instance of a series, each into a numbered file: their UIDs may be anything. A fetch that breaks off leaves nothing.

        What the series was converted to before is removed.

        Raises:
            requests.RequestException: the PACS does not answer, or sends another number of instances than it announced.
        """
        logger.info("Fetching series %s", series.uid)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch_") as work:
            complete = Path(work) / "series"
            complete.mkdir()
            number = 0
            for number, instance in enumerate(self._client.retrieve_series(series.study, series.uid), start=1):
                instance.save_as(complete / f"{number:06d}.dcm", write_like_original=False)
            if series.num_instances not in (None, number):
                self.archive.forget_series(series.uid)  # which may just be growing
                raise requests.RequestException(f"series {series.uid}: {number} of {series.num_instances} instances came: ask again")
            with suppress(VolumeError, FileNotFoundError):
                self.notice_grid(series.uid, read_grid(converted))
            converted.unlink(missing_ok=True)
            if folder.exists():
                folder.rename(Path(work) / "before")
            complete.rename(folder)

    def _convert(self, series: ImageSeries, folder: Path, target: Path) -> None:
        try:
            volume = read_volume(folder)
        except VolumeError as error:
            self.left_out[series.uid] = str(error)
            logger.warning("Series %s is left out: %s", series.uid, error)
            raise
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".add_") as work:
            written = Path(work) / target.name
            write_map(volume.array, volume, written)
            self.notice_grid(series.uid, volume)
            FolderIndex.add_image(self, series.uid, str(written), self._dicom_info(series.uid))

    def _dicom_info(self, series_id: str) -> dict[str, Any]:
        item = Dataset.from_json(self._client.search_for_series(search_filters={"SeriesInstanceUID": series_id})[0])
        names = ("StudyDate", "StudyTime", "Modality", "RetrieveURL", "PatientID", "StudyInstanceUID", "SeriesDescription")
        return {"SeriesInstanceUID": series_id} | {name: str(item.get(name) or "UNK") for name in names}

    def _fetch_label(self, image_id: str) -> None:
        """Brings the newest segmentation of an image here, unless what is here is newer."""
        with self._alone(image_id):
            found = self.archive.segmentations_of(image_id)
            info = LocalDatastore.get_label_info(self, image_id, FINAL)
            new = [item for item in found if item.uid not in info.get(SEEN, [])]
            if new:
                self._place(new[-1], seen=[item.uid for item in found])

    def _place(self, segmentation: SegmentationSeries, seen: list[str]) -> None:
        image = read_grid(Path(self.get_image_uri(segmentation.image)))
        stored = self._client.retrieve_instance(segmentation.study, segmentation.uid, segmentation.instance)
        named = read_segmentation(stored, image, self.class_names())
        info: dict[str, Any] = {"SeriesInstanceUID": segmentation.uid, "StudyInstanceUID": segmentation.study, SEEN: seen}
        info["label_info"] = [{"name": name} for name in named.names]
        with tempfile.TemporaryDirectory() as work:
            written = Path(work) / "label.nii.gz"
            write_mask(named.mask, image, written)
            FolderIndex.save_label(self, segmentation.image, str(written), FINAL, info)


def mend_pacs(datastore: DICOMWebDatastore, modalities: Sequence[str], class_names: Callable[[], Sequence[str]]) -> PacsDatastore:
    """Makes the host's DICOMweb datastore one of ours.

    The host makes it, with its client, credentials and cache folder, so the object is extended, not its construction.

    Args:
        datastore: as made.
        modalities: what is listed; empty for every kind of image.
        class_names: the classes there are, for the numbers in labels.
    """
    # The host's own default hides everything but CT; here the modality is an option.
    search_filter = {key: value for key, value in settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER.items() if key != "Modality"}
    logger.info("Series listed: modality %s, conditions %s", ", ".join(modalities or IMAGE_MODALITIES), search_filter)
    datastore.__class__ = PacsDatastore
    datastore.index_lock = threading.RLock()
    datastore.fetching, datastore.left_out = {}, {}
    datastore.grids = KnownGrids(Path(datastore._datastore.image_path()) / GRIDS)
    datastore.follow()
    datastore.archive = Archive(datastore._client, modalities, search_filter, settings.MONAI_LABEL_DICOMWEB_CACHE_EXPIRY)
    datastore.class_names = class_names
    limit_waiting(datastore._client._session)
    name_segments(class_names)
    return datastore

"""A local folder as a datastore: NIfTI, NRRD and pictures as MONAI Label does, and DICOM series without a PACS."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.datastore.local import LocalDatastore

from app_cdm.data.header import read_grid, read_series_grid
from app_cdm.data.volume import DicomSeries, Volume, VolumeError, find_dicom_series, read_dicom_series, read_volume, write_map
from lib.grids import KnownGrids
from lib.index import FINAL, FolderIndex, one_at_a_time
from lib.server.checks import MAX_NAME_LENGTH, is_image_id
from lib.server.errors import UnusableRequestError

logger = logging.getLogger(__name__)

IMAGE_PATTERNS = ("*.nii.gz", "*.nii", "*.nrrd", "*.png", "*.jpg", "*.jpeg")
# Marks an image whose source is a DICOM series; never the suffix of a file.
SERIES = ".dicom-series"
SUFFIXES = (SERIES, *(pattern.lstrip("*") for pattern in IMAGE_PATTERNS))
MAX_TOLD = 50
BAD_NAME = f"its name cannot be an image id: at most {MAX_NAME_LENGTH} bytes of UTF-8, no backslash or control character, no dot in front"


class FolderDatastore(FolderIndex):
    """MONAI Label's local datastore, which also knows the DICOM series below the folder.

    A series' id is its SeriesInstanceUID, as with DICOMweb. It is converted to NIfTI on first use, with the geometry
    of the series, into the cache folder; the DICOM files themselves are only read. Labels and the index go where
    MONAI Label puts them: `labels/` and `datastore_v2.json` in the folder.

    Args:
        folder: the studies.
        cache_dir: where converted series are kept, by content: a changed series is converted again.
        auto_reload: follow files that appear or vanish while the server runs.
        read_only: leave the index as it is at start.
    """

    image_suffixes = SUFFIXES

    def __init__(self, folder: str | Path, cache_dir: Path, auto_reload: bool = True, read_only: bool = False) -> None:
        self.index_lock = threading.RLock()
        self._cache_dir = cache_dir / "dicom"
        self._converting = threading.Lock()
        self.grids = KnownGrids(self._cache_dir / "grids" / hashlib.sha256(str(Path(folder).resolve()).encode()).hexdigest()[:16])
        self._series, self.left_out = survey(Path(folder))
        self._badly_named: dict[str, str] = {}
        super().__init__(str(folder), extensions=IMAGE_PATTERNS, auto_reload=auto_reload, read_only=read_only)
        self.follow()

    def rescan(self) -> None:
        """Looks at the folder again, for DICOM series too; only files directly in it are followed by themselves."""
        series, left_out = survey(Path(self._datastore_path))
        with self.index_lock:
            before = self._series
            self._series, self.left_out = series, left_out
        self.refresh()
        for image_id, item in series.items():
            if image_id in before and item.files != before[image_id].files:
                with suppress(VolumeError, OSError):  # told when it is used
                    self.series_grid(image_id)

    def find_series(self, image_id: str) -> DicomSeries | None:
        """The DICOM series that is the source of an image, if one is."""
        return self._series.get(image_id)

    def series_of_study(self, study_uid: str) -> list[str]:
        """The images that are DICOM series of a study."""
        return sorted(image_id for image_id, series in self._series.items() if series.study_uid == study_uid)

    def patients(self) -> dict[str, str]:
        """Image -> whose it is, as a digest; of DICOM series that say so."""
        return patients_of(self._series)

    def title(self, image_id: str) -> str:
        """What an image is called, if it is a DICOM series that says so."""
        series = self._series.get(image_id)
        return title_of(series.description, series.modality, series.part) if series else ""

    def series_file(self, image_id: str) -> Path:
        """Where the NIfTI of a series lies once it is converted."""
        series = self._series[image_id]
        return self._cache_dir / content_digest(series) / f"{image_id}.nii.gz"

    def series_grid(self, image_id: str) -> Volume:
        """The grid of a series by its headers; where it is another than before, labels and tags are forgotten.

        Raises:
            VolumeError: a header cannot be used.
        """
        grid = read_series_grid(self._series[image_id])
        self.notice_grid(image_id, grid)
        return grid

    def get_image_uri(self, image_id: str) -> str:
        """Path of an image file, or an empty string; converts a DICOM series on first use.

        Raises:
            VolumeError: the series cannot be read.
        """
        if image_id not in self._series:
            return str(super().get_image_uri(image_id))
        target = self.series_file(image_id)
        with self._converting:
            if not target.exists():
                convert_series(self._series[image_id], target)
        self.notice_grid(image_id, read_grid(target))
        return str(target)

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """What is known of an image; of a series, its description and the name under which viewers save it."""
        info: dict[str, Any] = super().get_image_info(image_id)
        if image_id in self._series:
            series = self._series[image_id]
            info |= {"name": f"{image_id}.nii.gz", "path": str(self.series_file(image_id))}
            info |= {"SeriesInstanceUID": series.uid, "SeriesDescription": series.description, "Modality": series.modality}
        return info

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Image and label pairs; a DICOM series is named by its converted file."""
        if not full_path:
            return list(super().datalist(full_path))
        images, labels = (os.path.realpath(path) for path in (self._datastore.image_path(), self._datastore.label_path(FINAL)))
        pairs = []
        for image_id, entry in list(self._datastore.objects.items()):
            label = entry.labels.get(FINAL)
            if label is not None:
                is_series = image_id in self._series
                image = self.get_image_uri(image_id) if is_series else _real(images, self._filename(image_id, entry.image.ext))
                pairs.append({"image": image, "label": _real(labels, self._filename(image_id, label.ext))})
        return pairs

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Adds an image, once it has proved to be readable; in the place of another one, whose labels go.

        The image that is there already, sent once more as Slicer does before it submits a label, stays, and so do its labels.
        """
        if image_id in self._series:
            raise UnusableRequestError(f"image {image_id!r} is a DICOM series of the studies: choose another id")
        if self._holds(image_id, read_volume(Path(image_filename))):
            self.update_image_info(image_id, image_info or {})
            return image_id
        return super().add_image(image_id, image_filename, image_info)

    def remove_image(self, image_id: str) -> None:
        """Removes an image and its labels; never a DICOM file."""
        if image_id in self._series:
            raise UnusableRequestError(
                f"image {image_id!r} is a DICOM series of the studies, which the server only reads: remove its files by hand"
            )
        super().remove_image(image_id)

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Stores a label, once it has proved to be readable."""
        read_volume(Path(label_filename))
        return super().save_label(image_id, label_filename, label_tag, label_info)

    def status(self) -> dict[str, Any]:
        """Counts for `/info/`."""
        counts = {"total": len(self._datastore.objects), "completed": len(self.labelled()), "label_tags": self.label_tags()}
        return counts | told(self.left_out | self._badly_named)

    def _make_way(self, image_id: str) -> None:
        self.forget(image_id)

    def _holds(self, image_id: str, volume: Volume) -> bool:
        """Whether the image of an id is this one, voxel for voxel."""
        if not self.has_image(image_id):
            return False
        try:
            held = read_volume(self.get_image_uri(image_id))
        except (VolumeError, OSError):
            return False
        return np.array_equal(held.array, volume.array) and np.allclose(held.affine, volume.affine, atol=1e-4)

    get_labeled_images = one_at_a_time(LocalDatastore.get_labeled_images)
    get_unlabeled_images = one_at_a_time(LocalDatastore.get_unlabeled_images)

    # The three hooks through which the host maps ids to files.

    def _to_id(self, file: str) -> tuple[str, str]:
        lower = file.lower()
        for suffix in SUFFIXES:
            if lower.endswith(suffix):
                return file[: -len(suffix)], file[-len(suffix) :]
        image_id, suffix = super()._to_id(file)
        return str(image_id), str(suffix)

    def _filename(self, id: str, ext: str) -> str:
        # An absolute path survives os.path.join; the DICOM file stands for the series in the host's existence checks.
        if ext == SERIES and id in self._series:
            return str(self._series[id].files[0])
        return id + ext

    def _list_files(self, path: str, patterns: list[str]) -> dict[str, str]:
        found: dict[str, str] = super()._list_files(path, patterns)
        files = {file: name for file, name in found.items() if is_image_id(self._to_id(file)[0])}
        if path == self._datastore.image_path():
            before = self._badly_named
            self._badly_named = {os.fsencode(file).decode(errors="backslashreplace"): BAD_NAME for file in sorted(found.keys() - files)}
            for file in self._badly_named.keys() - before:
                logger.warning("File %r is left out: %s", file, BAD_NAME)
            files |= {f"{image_id}{SERIES}": f"{image_id}{SERIES}" for image_id in self._series}
        return files


def _real(folder: str, name: str) -> str:
    """Path of a file with links followed; of a folder with many files, the folder's own are followed once."""
    path = os.path.join(folder, name)
    return os.path.realpath(path) if os.path.islink(path) else path


def survey(folder: Path) -> tuple[dict[str, DicomSeries], dict[str, str]]:
    """The DICOM series below a folder.

    A series of several volumes that one attribute tells apart is one image a volume: `<SeriesInstanceUID>_EchoTime_90`.

    Returns:
        The images by id, and why others are left out by id.
    """
    series: dict[str, DicomSeries] = {}
    left_out: dict[str, str] = {}
    for item in find_dicom_series(folder) if folder.is_dir() else []:
        image_id = series_id(item)
        why = item.problem
        if not re.fullmatch(r"[0-9.]{1,64}", item.uid):
            why = "its SeriesInstanceUID is missing or malformed: export the series again"
        elif image_id in series:
            why = "another study has a series of the same SeriesInstanceUID: keep one of them"
        elif item.is_localizer and not why:
            why = "it calls itself a localizer (ImageType)"
        if why:
            left_out[image_id] = why
            logger.warning("DICOM series %s is left out: %s", image_id or "without UID", why)
        else:
            series[image_id] = item
    if series:
        logger.info("%d DICOM series in the studies; each is converted on first use", len(series))
    return series, left_out


def series_by_id(folder: Path) -> dict[str, DicomSeries]:
    """The images among the DICOM series below a folder, by id."""
    return survey(folder)[0]


def series_id(series: DicomSeries) -> str:
    """Image id: the SeriesInstanceUID, and what sets a volume apart where the series holds several."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", "_".join((series.uid, *(series.part or ()))))


def patients_of(series: Mapping[str, DicomSeries]) -> dict[str, str]:
    """Image -> whose it is, as a digest; images that do not say so are missing."""
    return {image_id: item.patient for image_id, item in series.items() if item.patient}


def title_of(description: str, modality: str, part: tuple[str, str] | None = None) -> str:
    """What a series is called: its description, else its modality, and what sets a volume apart in it."""
    name = f"{description} ({modality})" if description and modality else description or modality
    return f"{name}, {part[0]} {part[1]}" if name and part else name


def told(left_out: Mapping[str, str]) -> dict[str, Any]:
    """What `/info/` says of series that are no images; nothing where there are none."""
    shown = dict(list(left_out.items())[:MAX_TOLD])
    return {"left_out": shown, "num_left_out": len(left_out)} if left_out else {}


def content_digest(series: DicomSeries) -> str:
    """Changes whenever a file of the series does."""
    digest = hashlib.sha256()
    for file in sorted(map(Path, series.files)):
        stat = file.stat()
        digest.update(f"{file}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def convert_series(series: DicomSeries, target: Path) -> None:
    """Writes a series as NIfTI, float32, with its own voxel grid and affine; complete or not at all.

    Raises:
        VolumeError: the series cannot be read as one volume.
    """
    logger.info("Converting DICOM series %s (%d files)", series.uid, len(series.files))
    volume = read_dicom_series(series)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        written = Path(work) / target.name
        write_map(volume.array, volume, written)
        written.replace(target)

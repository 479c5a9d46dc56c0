"""The images that tags belong to: which there are, and how many slices they have."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from monailabel.interfaces.datastore import Datastore

from app_cdm.data.header import read_grid, read_series_grid
from app_cdm.data.slices import find_slicing_axis
from app_cdm.data.volume import Volume
from lib.datastore import IMAGE_PATTERNS, FolderDatastore, patients_of, series_by_id, title_of
from lib.dicomweb.datastore import PacsDatastore
from lib.server.errors import UnknownNameError


class Images(Protocol):
    """What checking a tag needs to know of images."""

    def ids(self) -> set[str]:
        """Every image there is."""

    def missing(self, names: Iterable[str], with_left_out: bool = False) -> list[str]:
        """Those of the names that are no images, in order; series that are left out pass for images where that is wanted."""

    def grid(self, image: str) -> Volume:
        """An image's voxel grid; voxels are not read."""

    def patients(self) -> dict[str, str]:
        """Image -> whose it is, as a digest, where the images themselves say so."""

    def title(self, image: str) -> str:
        """What an image is called, where it says so itself; else empty."""


class DatastoreImages:
    """Images of the running server.

    Args:
        datastore: a local folder, or the cache of a DICOMweb server.
    """

    def __init__(self, datastore: Datastore) -> None:
        self._datastore = datastore

    def ids(self) -> set[str]:
        """Every image of the datastore."""
        return set(self._datastore.list_images())

    def missing(self, names: Iterable[str], with_left_out: bool = False) -> list[str]:
        """Those of the names that are no images, in order.

        Args:
            names: to be looked up.
            with_left_out: whether series of a DICOMweb server that turned out to make no volume pass for images: tags may have been
                given for them before, which can then be taken back.
        """
        if isinstance(self._datastore, FolderDatastore):
            return sorted({name for name in names if not self._datastore.has_image(name)})
        missing = set(names) - self.ids()
        if isinstance(self._datastore, PacsDatastore):  # the list of a slow PACS may be old
            passed = self._datastore.left_out if with_left_out else {}
            missing = {name for name in missing if name not in passed and not self._datastore.has_image(name)}
        return sorted(missing)

    def grid(self, image: str) -> Volume:
        """An image's voxel grid; a series of a DICOMweb server is fetched into the cache for it.

        Raises:
            VolumeError: the header cannot be used.
            UnknownNameError: its file is gone, which the datastore has not noticed yet.
        """
        try:
            if isinstance(self._datastore, FolderDatastore) and self._datastore.find_series(image):
                return self._datastore.series_grid(image)
            return read_grid(Path(self._datastore.get_image_uri(image)))
        except FileNotFoundError as error:
            raise UnknownNameError("image", image, hint="its file is gone from the studies") from error

    def patients(self) -> dict[str, str]:
        """Image -> whose it is, as a digest; of DICOM series that say so."""
        known: dict[str, str] = self._datastore.patients() if isinstance(self._datastore, FolderDatastore | PacsDatastore) else {}
        return known

    def title(self, image: str) -> str:
        """What an image is called, such as `AX FLAIR (MR)`, if it is a DICOM series that says so."""
        return self._datastore.title(image) if isinstance(self._datastore, FolderDatastore | PacsDatastore) else ""


class FolderImages:
    """Images of a folder that is looked at from outside the server: its index is neither read nor written.

    Args:
        folder: the studies.
    """

    def __init__(self, folder: Path) -> None:
        suffixes = [pattern.lstrip("*") for pattern in IMAGE_PATTERNS]
        self._files: dict[str, Path] = {}
        for path in sorted(folder.iterdir()):
            suffix = next((item for item in suffixes if path.name.endswith(item)), None)
            if suffix is not None and path.is_file():
                self._files[path.name[: -len(suffix)]] = path
        self._series = series_by_id(folder)

    def ids(self) -> set[str]:
        """Every image and series of the folder."""
        return {*self._files, *self._series}

    def missing(self, names: Iterable[str], with_left_out: bool = False) -> list[str]:
        """Those of the names that are no images, in order."""
        return sorted(set(names) - self.ids())

    def grid(self, image: str) -> Volume:
        """An image's voxel grid.

        Raises:
            VolumeError: the header cannot be used.
        """
        return read_series_grid(self._series[image]) if image in self._series else read_grid(self._files[image])

    def patients(self) -> dict[str, str]:
        """Image -> whose it is, as a digest; of DICOM series that say so."""
        return patients_of(self._series)

    def title(self, image: str) -> str:
        """What an image is called, if it is a DICOM series that says so."""
        series = self._series.get(image)
        return title_of(series.description, series.modality, series.part) if series else ""


def count_slices(images: Images, image: str) -> int:
    """Number of slices along the slicing axis."""
    grid = images.grid(image)
    return int(grid.array.shape[find_slicing_axis(grid)])

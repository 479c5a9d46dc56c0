"""Where the voxels of a datastore's image are, for somebody who must not disturb: nothing is fetched, converted or written."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from monailabel.interfaces.datastore import Datastore

from app_cdm.data.volume import Volume, read_dicom_series, read_volume
from lib.datastore import FolderDatastore


@dataclass(frozen=True)
class Source:
    """One image on the disk.

    Attributes:
        fingerprint: another one means that the files changed.
        read: reads the voxels.
    """

    fingerprint: str
    read: Callable[[], Volume]


def find_source(datastore: Datastore, image: str) -> Source | None:
    """The files of an image; None where it is gone, or is a series of a DICOMweb server that nobody has opened yet."""
    series = datastore.find_series(image) if isinstance(datastore, FolderDatastore) else None
    if series is not None:
        # Ends and length: every file of thousands of series would be too much to look at.
        ends = fingerprint([series.files[0], series.files[-1]])
        return Source(f"{len(series.files)}|{ends}", partial(read_dicom_series, series)) if ends else None
    # DICOMweb's own `get_image_uri` would download the series, and the host's follows the links of every folder on the way.
    index = datastore._datastore
    entry = index.objects.get(image)
    if entry is None:
        return None
    path = os.path.join(index.image_path(), datastore._filename(image, entry.image.ext))
    found = fingerprint([path])
    return Source(found, partial(read_volume, path)) if found else None


def fingerprint(paths: list[str | Path]) -> str:
    """Size and modification time of files; empty where one is gone."""
    try:
        return "|".join(f"{stat.st_size}.{stat.st_mtime_ns}" for stat in map(os.stat, paths))
    except OSError:
        return ""

"""The image that a result belongs to: whether it is still the same, and its DICOM instances."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.interfaces.datastore import Datastore

from app_cdm.data.volume import Volume, read_volume
from lib.datastore import FolderDatastore, content_digest
from lib.infers.run import find_image
from lib.results.errors import ResultConflictError
from lib.results.record import Result
from lib.server.errors import LIST_IMAGES, UnknownNameError


def stamp_of(datastore: Datastore, image: str) -> str:
    """Changes when a file of the image does; looked at without reading voxels.

    Raises:
        UnknownNameError: there is no such image.
        OSError: a file of the series is gone.
    """
    series = datastore.find_series(image) if isinstance(datastore, FolderDatastore) else None
    if series is not None:
        return content_digest(series)
    try:
        stat = Path(find_image(image, datastore)).stat()
    except FileNotFoundError:
        raise UnknownNameError("image", image, hint=LIST_IMAGES) from None
    return f"{stat.st_size}.{stat.st_mtime_ns}"


def digest_of(volume: Volume) -> str:
    """Changes when a voxel or the geometry of the image does."""
    digest = hashlib.blake2b(repr((volume.array.shape, np.round(volume.affine, 4).tolist())).encode(), digest_size=16)
    digest.update(volume.array.ravel(order="K").data)  # as it lies in memory: no copy
    return digest.hexdigest()


def check_unchanged(datastore: Datastore, result: Result) -> None:
    """Requires the image to be the one that the result was made of.

    Raises:
        UnknownNameError: the image is gone.
        ResultConflictError: another image has its id now.
    """
    try:
        if stamp_of(datastore, result.image) == result.source.stamp:
            return
        if digest_of(read_volume(find_image(result.image, datastore))) == result.source.digest:
            return
    except OSError:  # a file of the series is gone
        pass
    raise ResultConflictError(f"image {result.image!r} has changed since result {result.id!r} was made: run again")


def dicom_files(datastore: Datastore, image: str) -> list[Path]:
    """The DICOM files of an image; none where it is something else.

    Raises:
        UnknownNameError: there is no such image.
    """
    if isinstance(datastore, DICOMWebDatastore):
        find_image(image, datastore)  # fetches the series
        return sorted(path for path in (Path(datastore._datastore.image_path()) / image).iterdir() if path.is_file())
    series = datastore.find_series(image) if isinstance(datastore, FolderDatastore) else None
    return list(series.files) if series is not None else []

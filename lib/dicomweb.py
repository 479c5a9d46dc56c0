"""Images behind a DICOMweb server, fetched whole or not at all and converted with the same checks as those of a folder."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import LocalDatastore
from monailabel.datastore.utils.dicom import dicom_web_download_series
from monailabel.interfaces.datastore import Datastore
from pydicom.dataset import Dataset

from app_cdm.data.dicom_header import patient_key
from app_cdm.data.volume import VolumeError, read_volume, write_map
from lib.datastore import told
from lib.server.errors import UnknownNameError

logger = logging.getLogger(__name__)

PATIENT_FIELDS = ["PatientID", "IssuerOfPatientID", "StudyInstanceUID"]


class CheckedDicomWeb(DICOMWebDatastore):  # type: ignore[misc]  # monailabel ships no types
    """MONAI Label's DICOMweb datastore, with our reader.

    The host's own takes a series of which only a part arrived for complete, and makes a volume of whatever slices there are:
    missing ones, several echoes, several directions. Here such a series is refused, and left out of the list from then on.
    """

    left_out: dict[str, str]
    fetching: threading.Lock

    def get_image_uri(self, image_id: str) -> str:
        """Path of the NIfTI file of a series; fetches and converts it on first use.

        Raises:
            VolumeError: the series makes no volume.
            UnknownNameError: the DICOMweb server has no such series.
        """
        folder = Path(self._datastore.image_path()) / image_id
        target = folder.with_name(f"{image_id}.nii.gz")
        with self.fetching:
            if not folder.is_dir() or not any(folder.iterdir()):
                self._fetch(image_id, folder)
            if not self._convert_to_nifti:
                return str(folder.resolve())
            if not target.exists():
                self._convert(image_id, folder, target)
        return str(target.resolve())

    def _fetch(self, image_id: str, folder: Path) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetching_") as work:
            try:
                dicom_web_download_series(None, image_id, os.path.join(work, "series"), self._client)
            except IndexError as error:
                raise UnknownNameError("image", image_id, hint="the DICOMweb server has no such series") from error
            shutil.rmtree(folder, ignore_errors=True)
            Path(work, "series").replace(folder)

    def _convert(self, image_id: str, folder: Path, target: Path) -> None:
        try:
            volume = read_volume(folder)
        except VolumeError as error:
            self.left_out[image_id] = str(error)
            logger.warning("Series %s is left out: %s", image_id, error)
            raise
        with tempfile.TemporaryDirectory() as work:
            written = Path(work) / target.name
            write_map(volume.array, volume, written)
            LocalDatastore.add_image(self, image_id, str(written), self._dicom_info(image_id))

    def list_images(self) -> list[str]:
        """The series of the DICOMweb server but those that turned out to make no volume."""
        return [image_id for image_id in super().list_images() if image_id not in self.left_out]

    def rescan(self) -> None:
        """Gives series that were left out another chance, from a fresh copy."""
        for image_id in list(self.left_out):
            with self.fetching:
                shutil.rmtree(Path(self._datastore.image_path()) / image_id, ignore_errors=True)
                self.left_out.pop(image_id, None)

    def patients(self) -> dict[str, str]:
        """Image -> whose it is, as a digest."""
        found = self._client.search_for_series(search_filters=self._search_filter, fields=PATIENT_FIELDS)
        series = [Dataset.from_json(item) for item in found]
        keys = {str(item.SeriesInstanceUID): patient_key(item) for item in series if "SeriesInstanceUID" in item}
        return {image_id: key for image_id, key in keys.items() if key}

    def status(self) -> dict[str, Any]:
        """Counts for `/info/`, and what was left out."""
        return {**super().status(), **told(self.left_out)}


def check_series(datastore: Datastore) -> Datastore:
    """Makes the host's DICOMweb datastore ours; the host constructs it itself."""
    if isinstance(datastore, DICOMWebDatastore):
        datastore.__class__ = CheckedDicomWeb
        datastore.left_out, datastore.fetching = {}, threading.Lock()
    return datastore

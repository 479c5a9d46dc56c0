"""A result as DICOM: the mask as segmentation, a map as parametric map."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

from monailabel.interfaces.datastore import Datastore
from pydicom import Dataset
from pydicom.filewriter import dcmwrite

from app_cdm.data.dicom_codes import read_codes
from app_cdm.data.dicom_map import make_parametric_map
from app_cdm.data.dicom_seg import Segments, make_segmentation
from app_cdm.data.dicom_source import read_sources
from app_cdm.data.volume import VolumeError
from lib.results.decide import authorship
from lib.results.errors import ResultConflictError
from lib.results.images import check_unchanged, dicom_files
from lib.results.record import Result
from lib.results.store import ResultStore
from lib.server.errors import UnknownNameError, UnusableRequestError

KINDS = ("seg", "map")


class DicomExport:
    """Makes DICOM objects of results, for download; nothing is stored.

    Args:
        store: the results.
        datastore: where the images are.
        codes_file: the user's SNOMED CT codes.
    """

    def __init__(self, store: ResultStore, datastore: Datastore, codes_file: Path) -> None:
        self._store, self._datastore, self._codes_file = store, datastore, codes_file

    def export(self, result_id: str, kind: str, class_name: str | None) -> bytes:
        """A DICOM file.

        Args:
            result_id: the result.
            kind: `seg` or `map`.
            class_name: of `map`, whose; may be left out where there is one class only.

        Raises:
            UnknownNameError: there is no such result or class, or the image is gone.
            UnusableRequestError: there is no such kind, or the class is missing.
            ResultConflictError: the image is no DICOM series or has changed, or the mask is empty.
        """
        if kind not in KINDS:
            raise UnusableRequestError(f"kind {kind!r}: must be one of {list(KINDS)}")
        result = self._store.get(result_id)
        class_name = self._class(result, class_name) if kind == "map" else None
        check_unchanged(self._datastore, result)
        files = dicom_files(self._datastore, result.image)
        if not files:
            raise ResultConflictError(
                f"image {result.image!r} is no DICOM series, so a DICOM object has nothing to refer to: take the NIfTI of "
                f"GET /results/{result.id}/{'map/' + class_name if class_name else 'mask'}"
            )
        try:
            return _as_file(self._make(result, files, class_name))
        except VolumeError as error:
            raise ResultConflictError(str(error)) from error

    def _make(self, result: Result, files: list[Path], class_name: str | None) -> Dataset:
        sources, mask = read_sources(files), self._store.read_mask_volume(result.id)
        user = result.decision["user"] if result.decision else ""
        author = authorship(result, user)
        if class_name is None:
            return make_segmentation(mask.array, mask.affine, sources, Segments(result.labels, read_codes(self._codes_file)), author)
        author = replace(author, description=f"{result.reply['model']} {result.reply['model_version']}, map of {class_name}")
        return make_parametric_map(self._store.read_map(result.id, class_name), mask.affine, sources, class_name, author)

    @staticmethod
    def _class(result: Result, class_name: str | None) -> str:
        if class_name is None and len(result.labels) > 1:
            raise UnusableRequestError(f"class is missing: name one of {list(result.labels)}")
        if class_name is not None and class_name not in result.labels:
            raise UnknownNameError(f"class of result {result.id!r}", class_name, result.labels)
        return class_name or next(iter(result.labels))


def _as_file(made: Dataset) -> bytes:
    buffer = io.BytesIO()
    dcmwrite(buffer, made, write_like_original=False)
    return buffer.getvalue()

"""Any datastore of the host, with tags beside its own index."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.utils.convert import binary_to_image
from monailabel.interfaces.datastore import Datastore

from app_cdm.data.dicom_seg import Authorship
from app_cdm.data.volume import read_volume, write_mask
from lib.index import FolderIndex
from lib.segmentations import drawn_by, segment_values, store_segmentation
from lib.server.errors import UnusableRequestError
from lib.tags.book import TagBook
from lib.tags.mask import on_image_grid
from lib.tags.submission import FINAL, TAGS, acting_user, submission


class TaggedDatastore(FolderIndex):
    """Diverts the info key `tags` to the tag store; everything else goes where the host puts it."""

    tag_book: TagBook
    codes_file: Path

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Stores what is under `tags` as tags, the rest as the host does; nothing, if a tag is refused.

        Raises:
            TagError, UnknownNameError, VolumeError: see `check_tags`.
        """
        # The host adds the user to every info; alone it is not worth writing.
        rest = {key: value for key, value in info.items() if key != TAGS}
        tags = self.tag_book.check({image_id: info[TAGS]}) if TAGS in info else None
        if tags is None or set(rest) - {"user"}:
            if isinstance(self, DICOMWebDatastore):
                self.get_image_uri(image_id)  # the host knows only what is in its cache
            super().update_image_info(image_id, rest)
        if tags is not None:
            self.tag_book.record(tags, acting_user.get(), "manual")

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """What the host knows of an image, and its tags."""
        info: dict[str, Any] = {key: value for key, value in super().get_image_info(image_id).items() if key != TAGS}
        tags = self.tag_book.store.tags(image_id)
        return info | {TAGS: tags} if tags else info

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Adds an image, without tags: they need an image to be checked against."""
        if TAGS in (image_info or {}):
            raise UnusableRequestError("params must not hold 'tags': add the image, then send them with PUT /tags/<image>")
        return str(super().add_image(image_id, image_filename, image_info))

    def forget(self, image_id: str) -> None:
        """Removes the labels of an image that is removed or replaced, or grew; its tags become unknown, and stay in the history."""
        self.tag_book.forget(image_id, acting_user.get())
        super().forget(image_id)

    def save_label(
        self,
        image_id: str,
        label_filename: str,
        label_tag: str,
        label_info: dict[str, Any],
        author: Authorship | None = None,
        **options: Any,
    ) -> str:
        """Stores a label: a final one of a DICOMweb server also there, as DICOM SEG.

        Args:
            image_id: the image.
            label_filename: NIfTI or NRRD; from OHIF also bare voxels.
            label_tag: where it belongs.
            label_info: kept beside it; names its segments.
            author: whose it is; None means whoever submits it now.
            options: of the host.
        """
        if isinstance(self, DICOMWebDatastore) and label_tag == FINAL:
            return self._save_final(image_id, label_filename, label_info, author)
        return str(super().save_label(image_id, label_filename, label_tag, label_info, **options))

    def _save_final(self, image_id: str, label_filename: str, label_info: dict[str, Any], author: Authorship | None) -> str:
        """Differs from the host's: names stay with their segments, codes are right, and a label on another grid is refused.

        An empty label, which is no segmentation, stays in the cache; so does a copy of any other, on the image's grid.
        """
        image_file = self.get_image_uri(image_id)
        with tempfile.TemporaryDirectory() as work:
            if label_filename.endswith(".bin"):
                label_filename = shutil.move(binary_to_image(image_file, label_filename), str(Path(work) / "label.nii.gz"))
            image = read_volume(image_file)
            mask = replace(image, array=on_image_grid(read_volume(label_filename), image).astype(np.uint8))
            if mask.array.any():
                values = segment_values(mask.array, label_info.get("label_info"), self.tag_book.class_names())
                series = store_segmentation(self, image_id, mask, values, self.codes_file, author or drawn_by(acting_submitter()))
                shown = {key: self.get_image_info(image_id).get(key) for key in ("Modality", "PatientID", "StudyInstanceUID")}
                label_info |= {"SeriesInstanceUID": series, **shown}
            written = Path(work) / "mask.nii.gz"
            write_mask(mask.array, image, written)
            return str(super().save_label(image_id, str(written), FINAL, label_info))

    def status(self) -> dict[str, Any]:
        """Counts for `/info/`: completed is every image with a tag or a final label, once; viewers allow training above 0."""
        status: dict[str, Any] = super().status()
        tagged = self.tag_book.tagged()
        labelled = set(self.get_labeled_images()) if isinstance(self, DICOMWebDatastore) else self.labelled()
        return status | {"completed": len(tagged | labelled), "tagged": len(tagged)}


def acting_submitter() -> str:
    """Who submits the label that this thread stores; nobody known where it comes from the server itself."""
    submitted = submission.get()
    return submitted.user if submitted else ""


def add_tags(datastore: Datastore, tag_book: TagBook, codes_file: Path) -> Datastore:
    """Gives a datastore its tags.

    The host makes some datastores itself, so the object is extended, not its construction.

    Args:
        datastore: a local folder, or the cache of a DICOMweb server.
        tag_book: its tags.
        codes_file: codes of segments that the user chose.
    """
    kind = type(datastore)
    datastore.__class__ = type(f"Tagged{kind.__name__}", (TaggedDatastore, kind), {})
    datastore.tag_book = tag_book
    datastore.codes_file = codes_file
    return datastore

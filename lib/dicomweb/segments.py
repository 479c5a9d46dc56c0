"""Names of the segments in DICOM segmentations that the host writes: by value, where it goes by order of appearance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import monailabel.endpoints.infer
import numpy as np
from monailabel.datastore.utils.convert import nifti_to_dicom_seg

from app_cdm.data.volume import read_volume


def name_segments(class_names: Callable[[], Sequence[str]]) -> None:
    """Makes the host answer `/infer` with segmentations written by `write_segmentation`."""
    monailabel.endpoints.infer.nifti_to_dicom_seg = partial(write_segmentation, class_names)


def write_segmentation(class_names: Callable[[], Sequence[str]], series_dir: str, label: str, label_info: Any, **options: Any) -> str:
    """The host's writer, told of the segments that are in the label and of no others.

    It gives the first name to the smallest value there is: a label with the second class alone would be stored as the first.

    Args:
        class_names: the classes there are, alphabetically; name the values where the request does not.
        series_dir: DICOM files of the image.
        label: mask file.
        label_info: `[{"name": ...}, ...]`, of the values 1, 2, ... in order.
        **options: passed on.

    Returns:
        Path of the DICOM file, or an empty string for an empty label.
    """
    given = label_info if isinstance(label_info, list) and label_info else [{"name": name} for name in class_names()]
    values = np.unique(read_volume(Path(label)).array).astype(int)
    present = [value for value in values if value > 0]
    chosen = [given[value - 1] if value <= len(given) else {"name": f"segment {value}"} for value in present]
    return str(nifti_to_dicom_seg(series_dir, label, chosen, **options))

"""Which series of a PACS are listed as images."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from app_cdm.data.qido import IMAGE_MODALITIES

ALL = "all"


def read_modalities(text: str) -> tuple[str, ...]:
    """The modalities behind `--modality`: `all`, or names such as `MR,CT`.

    Returns:
        The names, in order; empty for every kind of image.

    Raises:
        ValueError: a name is not one of DICOM's.
    """
    names = [item.strip().upper() for item in text.split(",") if item.strip()]
    if [name.lower() for name in names] == [ALL]:
        return ()
    wrong = [name for name in names if not re.fullmatch(r"[A-Z0-9_ ]{1,16}", name) or name.lower() == ALL]
    if wrong or not names:
        raise ValueError(f"modality {text!r}: must be '{ALL}', or names of modalities such as MR or MR,CT")
    return tuple(dict.fromkeys(names))


def searches(modalities: Sequence[str], search_filter: Mapping[str, Any]) -> list[dict[str, Any]]:
    """QIDO filters whose results together hold the series asked for: one a modality, since a filter holds one value.

    Args:
        modalities: from `read_modalities`.
        search_filter: further conditions, put into each.
    """
    return [{**search_filter, "Modality": name} for name in modalities] or [dict(search_filter)]


def is_listed(modality: str, modalities: Sequence[str]) -> bool:
    """Whether a series of a modality is an image here; a PACS may ignore a filter that it does not know."""
    return modality in (modalities or IMAGE_MODALITIES)

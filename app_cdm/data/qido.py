"""QIDO-RS answers, complete and read as they are: a pydicom data set of each of thousands of series takes too long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dicomweb_client import DICOMwebClient
from pydicom.datadict import tag_for_keyword

JsonDataset = Mapping[str, Mapping[str, Any]]

# Servers that cut their answers off do so at a round number.
PAGE_UNIT = 10
# Series of pixels that a mask can be drawn on; reports, contours, plans, segmentations and slides are none.
IMAGE_MODALITIES = ("CR", "CT", "DX", "MG", "MR", "NM", "PT", "RF", "RG", "US", "XA")


def search_series(
    client: DICOMwebClient, search_filters: Mapping[str, Any], fields: Sequence[str] = (), study: str | None = None
) -> list[JsonDataset]:
    """Every series that a server has for a search; what it leaves out of its first answer is asked for with an offset.

    Args:
        client: the PACS.
        search_filters: as `search_for_series` takes them.
        fields: further attributes to return.
        study: StudyInstanceUID, for the series of one study alone.
    """
    found: dict[str, JsonDataset] = {}
    while True:
        page = client.search_for_series(study, search_filters=dict(search_filters), fields=list(fields) or None, offset=len(found) or None)
        new = {text_of(item, "SeriesInstanceUID"): item for item in page}
        new = {uid: item for uid, item in new.items() if uid and uid not in found}
        found |= new
        if not new or len(page) % PAGE_UNIT:  # a server may also know nothing of offsets, and begin again
            return list(found.values())


def text_of(item: JsonDataset, keyword: str) -> str:
    """First value of an attribute in the DICOM JSON model; empty where there is none."""
    values = item.get(f"{tag_for_keyword(keyword):08X}", {}).get("Value") or [None]
    return str(values[0]).strip() if values[0] is not None else ""

"""Which series of a PACS are listed."""

from __future__ import annotations

import pytest

from app_cdm.data.qido import IMAGE_MODALITIES
from lib.dicomweb.modalities import is_listed, read_modalities, searches


def test_modalities_are_read_as_they_are_written() -> None:
    assert read_modalities("all") == () == read_modalities(" ALL ")
    assert read_modalities("mr, CT,MR") == ("MR", "CT")


@pytest.mark.parametrize("text", ["", " , ", "MR;CT", "all,MR", "M" * 17, "MR\\CT"])
def test_what_is_no_modality_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be 'all', or names"):
        read_modalities(text)


def test_one_search_a_modality_each_with_the_other_conditions() -> None:
    assert searches((), {"PatientID": "7"}) == [{"PatientID": "7"}]
    assert searches(("MR", "CT"), {"PatientID": "7"}) == [{"PatientID": "7", "Modality": "MR"}, {"PatientID": "7", "Modality": "CT"}]


def test_segmentations_and_reports_are_no_images() -> None:
    assert {"MR", "CT", "US", "PT"} <= set(IMAGE_MODALITIES)
    assert is_listed("MR", ()) and not is_listed("SEG", ()) and not is_listed("SR", ()) and not is_listed("", ())
    assert is_listed("OT", ("OT",)) and not is_listed("MR", ("CT",))

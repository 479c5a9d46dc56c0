"""Whose an image is: Patient ID keeps the series of one patient on one side of the held-out split, and is told to nobody."""

from __future__ import annotations

from pathlib import Path

import pytest

from app_cdm.data.volume import find_dicom_series
from app_cdm.training.held_out import split_patients
from lib.datastore import survey
from lib.tags.book import TagBook
from lib.tags.images import FolderImages
from lib.tags.store import TagStore
from tests.data.dicom_files import write_series

pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")
NUM_PATIENTS = 12


@pytest.fixture
def book(tmp_path: Path) -> TagBook:
    """Twelve patients with two series each; every other one has a lesion."""
    folder = tmp_path / "studies"
    for patient in range(NUM_PATIENTS):
        for series in range(2):
            write_series(folder / f"{patient}_{series}", 3, series=f"1.2.{patient}.{series}", PatientID=f"SECRET-{patient}")
    book = TagBook(TagStore(tmp_path / "tags.sqlite"), FolderImages(folder), lambda: ("tumor",))
    tags = {f"1.2.{patient}.{series}": {"tumor": patient % 2 == 0} for patient in range(NUM_PATIENTS) for series in range(2)}
    book.write(tags, "ann", "manual")
    return book


def test_series_of_one_patient_are_on_one_side(book: TagBook) -> None:
    table = book.table()
    assert len(set(table.patients.values())) == NUM_PATIENTS
    learned, judged = split_patients(table, 0.3)
    assert learned.tags and judged.tags
    for part in (learned, judged):
        assert all(f"{image[:-1]}{series}" in part.tags for image in part.tags for series in "01")


def test_patient_ids_are_told_to_nobody(book: TagBook, caplog: pytest.LogCaptureFixture) -> None:
    patients = book.table().patients
    assert not any("SECRET" in patient for patient in patients.values())
    assert "SECRET" not in caplog.text
    assert book.store.patients() == {}, "nothing of it is kept on the disk"


def test_patients_of_a_table_count_before_those_of_dicom(book: TagBook) -> None:
    book.store.set_patients({"1.2.0.0": "trial-7"})
    patients = book.table().patients
    assert patients["1.2.0.0"] == "trial-7"
    assert patients["1.2.0.1"] != "trial-7"


def test_without_a_patient_id_a_study_is_one_patient(tmp_path: Path) -> None:
    for name, study in (("a", "1.5.1"), ("b", "1.5.1"), ("c", "1.5.2")):
        write_series(tmp_path / name, 2, series=f"1.9.{ord(name)}", PatientID="", StudyInstanceUID=study)
    for name, issuer in (("d", "here"), ("e", "there")):
        write_series(tmp_path / name, 2, series=f"1.9.{ord(name)}", PatientID="7", IssuerOfPatientID=issuer)
    patients = {series.uid: series.patient for series in find_dicom_series(tmp_path)}
    a, b, c, d, e = (patients[f"1.9.{ord(name)}"] for name in "abcde")
    assert a == b != c
    assert len({a, c, d, e}) == 4


def test_a_series_uid_that_two_studies_use_names_one_image_only(tmp_path: Path) -> None:
    for study in ("1.5.1", "1.5.2"):
        write_series(tmp_path / study, 2, series="1.9.1", StudyInstanceUID=study)
    series, left_out = survey(tmp_path)
    assert list(series) == ["1.9.1"]
    assert series["1.9.1"].study_uid == "1.5.1"
    assert "another study" in left_out["1.9.1"]

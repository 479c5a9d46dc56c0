"""What becomes a case: files, folders, series, tables; and what is refused before anything is segmented."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app_cdm.cohort.cases import check_names, find_cases
from app_cdm.cohort.table import read_table
from tests.host.studies import SHAPE, head, write_dicom_series, write_nifti


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "study"
    (folder / "deep").mkdir(parents=True)
    write_nifti(folder / "deep" / "a.nii.gz", head(1))
    write_nifti(folder / "b.nii", head(2))
    return folder


def table(folder: Path, text: str) -> Path:
    path = folder / "cohort.csv"
    path.write_text(text)
    return path


def test_folder_gives_files_and_series_but_not_its_own_results(study: Path) -> None:
    uid = write_dicom_series(study / "series")
    output = study / "masks"
    output.mkdir()
    write_nifti(output / "b_mask.nii.gz", head(3))
    cases = find_cases([study], output)
    assert [case.name for case in cases] == ["b", "deep/a", uid]
    assert all(case.read().array.shape[2] == SHAPE[2] for case in cases)
    assert cases[1].source == str(study / "deep" / "a.nii.gz")


def test_suffixes_in_capitals_are_read_too(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", head(1)).rename(tmp_path / "A.NII.GZ")
    for name in ("b.PNG", "c.JPG", "d.Jpeg"):
        Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / name)
    cases = find_cases([tmp_path], tmp_path / "masks")
    assert [(case.name, case.read().array.shape) for case in cases] == [("A", SHAPE), *((name, (5, 4, 1)) for name in "bcd")]
    (case,) = find_cases([tmp_path / "A.NII.GZ"], tmp_path / "masks")
    assert case.name == "A"


def test_hidden_folders_and_labels_of_a_server_are_no_images(study: Path) -> None:
    for folder in (study, study / "deep"):
        for name in (".thumbnails/x.nii.gz", "labels/final/a.nii.gz", "labels/original/b.nii"):
            (folder / name).parent.mkdir(parents=True)
            write_nifti(folder / name, head(3))
    (study / "datastore_v2.json").write_text("{}")
    names = {path: [case.name for case in find_cases([path], study / "masks")] for path in (study, study / "labels")}
    assert names[study] == ["b", "deep/a", "deep/labels/final/a", "deep/labels/original/b"], "there is no server's index beside these"
    assert names[study / "labels"] == ["final/a", "original/b"], "who asks for them gets them"
    hidden = study / ".cache" / "study"
    hidden.mkdir(parents=True)
    write_nifti(hidden / "c.nii", head(4))
    assert [case.name for case in find_cases([hidden], study / "masks")] == ["c"], "what is above the input counts for nothing"


def test_table_names_images_relative_to_itself_and_outputs(study: Path) -> None:
    write_dicom_series(study / "series")
    path = table(study, "name,image,age\npatient 1,deep/a.nii.gz,50\n,b.nii,60\nx/y,series,70\n")
    cases = find_cases([path], study / "masks")
    assert [case.name for case in cases] == ["patient 1", "b", "x/y"]
    assert [case.read().array.shape for case in cases[:2]] == [SHAPE, SHAPE]
    assert cases[2].read().kind == "dicom"


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_table_as_spreadsheets_write_it(study: Path, separator: str) -> None:
    path = study / "cohort.csv"
    path.write_bytes(("\ufeff" + separator.join(["Bild", "Fall"]) + "\r\n" + separator.join(['"b.nii"', "eins"]) + "\r\n").encode())
    (row,) = read_table(path, "Bild", "Fall")
    assert (row.image, row.name) == (study / "b.nii", "eins")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file\nb.nii\n", r"cohort.csv, line 1: no column 'image'; the columns are \['file'\]"),
        ("", r"line 1: no column 'image'; the columns are \[\]"),
        ("image\n", "no row below the header"),
        ("image,age\nb.nii,1\nnone.nii,2\n,3\n", "cohort.csv, line 3: no such image: none.nii; line 4: column 'image' is empty"),
        ("image\n" + "no.nii\n" * 7, "line 6: no such image: no.nii; and 2 more"),
        ("image\nb.nii,2\n", "line 2: more values than columns"),
        ("name,image\nsame,b.nii\nsame,deep/a.nii.gz\n", r"several inputs are named \['same'\]"),
        ("name,image\n../up,b.nii\n", "output name '../up': must be a path below the output folder"),
        ("name,image\n/abs,b.nii\n", "output name '/abs': must be a path below"),
        ("name,image\na,b.nii\n./a,deep/a.nii.gz\n", r"output name '\./a': write 'a'"),
        ("name,image\ng/b,b.nii\ng//b,deep/a.nii.gz\n", "output name 'g//b': write 'g/b'"),
        ("name,image\n0002/,b.nii\n", "output name '0002/': write '0002'"),
        ("name,image\na/./b,b.nii\n", r"output name 'a/\./b': write 'a/b'"),
        ("name,image\n.claims/x,b.nii\n", "no part of it may start with a dot"),
        ("name,image\n" + "n" * 181 + ",b.nii\n", "longer than 180 bytes"),
        ('image\n"b.nii\n', "cannot be read as a CSV table"),
    ],
)
def test_table_that_cannot_be_used_says_where(study: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_cases([table(study, text)], study / "masks")


def test_column_that_was_asked_for_must_be_there(study: Path) -> None:
    with pytest.raises(ValueError, match="line 1: no column 'patient'"):
        read_table(table(study, "image\nb.nii\n"), name_column="patient")


def test_table_that_is_no_text(study: Path) -> None:
    path = study / "cohort.csv"
    path.write_bytes(b"image\n\xff\xfe\n")
    with pytest.raises(ValueError, match="cannot be read as a CSV table in UTF-8"):
        read_table(path)


def test_names_that_would_write_to_one_file() -> None:
    check_names(["a", "b.error"])
    with pytest.raises(ValueError, match=r"'a' and 'a\.error' would write to the same file"):
        check_names(["a", "a.error"])

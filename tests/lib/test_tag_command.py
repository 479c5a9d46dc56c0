"""`python -m lib.tags` on a folder, without a server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lib.tags.__main__ import main
from lib.tags.location import tags_file
from lib.tags.store import TagStore
from tests.host.studies import head, write_nifti

TABLE = "image,class,tag,patient\ncase0,tumor,1-2;4-4,p0\ncase0,edema,absent,p0\ncase1,tumor,present,p1\n"


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    folder = tmp_path / "studies"
    folder.mkdir()
    for number in range(2):
        write_nifti(folder / f"case{number}.nii.gz", head(number))
    return folder


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "tags.csv"
    path.write_text(TABLE)
    return path


def run(command: str, studies: Path, *arguments: str) -> int:
    return main([command, "--studies", str(studies), "--classes", "edema,tumor", *arguments])


def test_import_export_history_and_backup(studies: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("import", studies, str(table), "--dry-run") == 0
    assert json.loads(capsys.readouterr().out)["changed"] == 3
    assert run("import", studies, str(table), "--user", "ann") == 0
    assert json.loads(capsys.readouterr().out) == {"images": 2, "tags": 3, "changed": 3, "dry_run": False, "action": 1}
    assert not (studies / "datastore_v2.json").exists(), "the server's index is no business of a second process"
    assert run("export", studies, "--format", "json") == 0
    exported = capsys.readouterr().out
    assert json.loads(exported) == {"case0": {"edema": False, "tumor": [[1, 2], [4, 4]]}, "case1": {"tumor": True}}
    assert run("export", studies, "--output", str(tmp_path / "again.csv")) == 0
    assert run("import", studies, str(tmp_path / "again.csv"), "--user", "bob") == 0
    assert json.loads(capsys.readouterr().out)["changed"] == 0
    assert run("history", studies, "case0", "--class", "tumor") == 0
    (event,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (event["value"], event["user"], event["provenance"]) == ([[1, 2], [4, 4]], "ann", "import")
    assert run("backup", studies, str(tmp_path / "copy.sqlite")) == 0
    copy = TagStore(tmp_path / "copy.sqlite")
    assert copy.patients() == {"case0": "p0", "case1": "p1"}
    copy.close()


def test_empty_cells_leave_tags_as_they_are(studies: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("import", studies, str(table)) == 0
    blank = tmp_path / "blank.csv"
    blank.write_text("image_id,has_edema,has_tumor\ncase0,,1\ncase1,,\n")
    assert run("import", studies, str(blank)) == 0
    assert json.loads(capsys.readouterr().out.split("}")[1] + "}")["changed"] == 1
    assert run("export", studies, "--format", "json") == 0
    assert json.loads(capsys.readouterr().out) == {"case0": {"edema": False, "tumor": True}, "case1": {"tumor": True}}


def test_refusals_say_why_and_store_nothing(studies: Path, table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table.write_text(TABLE + "case2,tumor,present,p2\n")
    assert run("import", studies, str(table)) == 1
    assert "case2" in capsys.readouterr().err
    assert run("export", studies) == 0
    assert capsys.readouterr().out.count("\n") == 1, "only the header"
    assert run("import", studies, "nowhere.csv") == 1
    assert run("history", studies / "nowhere", "case0") == 1
    assert main(["import", "--studies", "http://pacs/dicom-web", str(table)]) == 1
    assert "name it with --server" in capsys.readouterr().err


def test_reading_makes_no_store(studies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", studies) == 1
    assert "no tags yet" in capsys.readouterr().err
    assert not tags_file(str(studies), studies).exists()

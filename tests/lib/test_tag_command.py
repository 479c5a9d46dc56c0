"""`python -m lib.tags` on a folder, without a server."""

from __future__ import annotations

import getpass
import json
import os
from pathlib import Path

import pytest

from lib.tags.__main__ import main
from lib.tags.location import tags_file
from lib.tags.store import TagStore
from tests.host.studies import head, write_nifti
from tests.lib.test_tag_store import full_disk

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


def test_backup_that_cannot_be_written_is_one_line(studies: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("import", studies, str(table)) == 0
    assert run("backup", studies, str(tmp_path / "nowhere" / "copy.sqlite")) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "nowhere" in said


@pytest.mark.parametrize("error", [KeyError("getpwuid(): uid not found: 1234"), OSError("No username set in the environment")])
def test_a_user_number_without_a_name_imports_as_unknown(
    studies: Path, table: Path, error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nameless() -> str:
        raise error

    monkeypatch.setattr(getpass, "getuser", nameless)
    assert run("import", studies, str(table)) == 0
    assert run("history", studies, "case1") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["user"] == "unknown"


def test_export_that_fails_leaves_the_earlier_file(
    studies: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("import", studies, str(table)) == 0
    target = tmp_path / "out" / "tags.csv"
    target.parent.mkdir()
    target.write_text("earlier")
    with full_disk(limit=10):
        assert run("export", studies, "--output", str(target)) == 1
    assert target.read_text() == "earlier" and list(target.parent.iterdir()) == [target]
    assert run("export", studies, "--output", str(target)) == 0
    assert target.read_text().startswith("image,patient,class")


def test_export_into_a_link_or_a_pipe_leaves_it_what_it_is(studies: Path, table: Path, tmp_path: Path) -> None:
    assert run("import", studies, str(table)) == 0
    link, pipe = tmp_path / "link.csv", tmp_path / "pipe"
    link.symlink_to(tmp_path / "real.csv")
    assert run("export", studies, "--output", str(link)) == 0
    assert link.is_symlink() and (tmp_path / "real.csv").is_file()
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert run("export", studies, "--output", str(pipe)) == 0
    assert os.read(reading, 1 << 16) == (tmp_path / "real.csv").read_bytes() and pipe.is_fifo()
    os.close(reading)


def test_reading_makes_no_store(studies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", studies) == 1
    assert "no tags yet" in capsys.readouterr().err
    assert not tags_file(str(studies), studies).exists()

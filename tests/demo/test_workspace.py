"""The demos remove nothing that is not their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo import __main__ as demo
from demo import pacs, study, workspace
from demo.study import make_demo_study
from demo.workspace import WorkspaceError, check_workspace, mark_workspace


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    (tmp_path / "mine" / "study").mkdir(parents=True)
    (tmp_path / "mine" / "study" / "notes.txt").write_text("mine")
    return tmp_path / "mine"


def test_foreign_folders_are_refused_and_left_alone(
    foreign: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pacs, "find_orthanc", lambda: None)
    monkeypatch.setattr(pacs, "CASES", ())
    for main in (demo.main, pacs.main):
        assert main(["--once", "--workspace", str(foreign)]) == 2
        assert "name an empty or a new folder" in capsys.readouterr().err
    file = foreign / "study" / "notes.txt"
    with pytest.raises(WorkspaceError):
        check_workspace(file)
    assert [path.name for path in foreign.iterdir()] == ["study"] and file.read_text() == "mine"


def test_new_and_empty_folders_and_those_of_the_demo_are_taken(tmp_path: Path) -> None:
    check_workspace(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    check_workspace(tmp_path / "empty")
    mark_workspace(tmp_path / "empty")
    (tmp_path / "empty" / "truth").mkdir()
    check_workspace(tmp_path / "empty")


@pytest.mark.parametrize("part", [".", "pacs"])
def test_the_folder_in_the_repository_needs_no_mark(foreign: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """Versions before this one made it without."""
    monkeypatch.setattr(workspace, "DEFAULT", foreign)
    (foreign / "pacs").mkdir()
    (foreign / "pacs" / "server.log").write_text("")
    check_workspace(foreign / part)


def test_the_demo_marks_what_it_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class StoppedError(Exception):
        pass

    def stop(_: object) -> None:
        raise StoppedError

    monkeypatch.setattr(study, "make_case", stop)
    for _ in range(2):
        with pytest.raises(StoppedError):
            make_demo_study(tmp_path / "new")
    monkeypatch.setattr(pacs, "Orthanc", lambda *_: stop(None))
    for _ in range(2):
        check_workspace(tmp_path / "pacs")
        with pytest.raises(StoppedError), pacs._pacs(tmp_path / "pacs", []):
            pass
        (tmp_path / "pacs" / "log").write_text("")
    assert (tmp_path / "new" / workspace.MARKER).is_file()

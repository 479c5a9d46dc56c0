"""The app in the process that trains: what the server writes is the server's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from monailabel.config import settings

import main
from lib.datastore import FolderDatastore
from lib.results.store import UNFINISHED, results_folder
from lib.server.install import HOST_MODULE
from tests.host.studies import head, write_nifti


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[main.CdmApp]:
    """The app of a training that starts while its server writes."""
    studies, cache = tmp_path / "studies", tmp_path / "cache"
    studies.mkdir()
    write_nifti(studies / "case.nii.gz", head())
    FolderDatastore(studies, cache, auto_reload=False)
    (results_folder(str(studies), cache) / f"{UNFINISHED}{'0' * 32}").mkdir(parents=True)
    write_nifti(studies / "new.nii.gz", head(1))  # the server is about to write it into its index
    monkeypatch.delitem(sys.modules, HOST_MODULE, raising=False)
    monkeypatch.setattr(main, "end_with_server", lambda: None)
    monkeypatch.setattr(settings, "MONAI_LABEL_DATASTORE_AUTO_RELOAD", True)
    (tmp_path / "models").mkdir()
    conf = {"classes": "tumor", "model_dir": str(tmp_path / "models"), "cache_dir": str(cache)}
    made = main.CdmApp(str(tmp_path), str(studies), conf)
    yield made
    made.tags.store.close()


def test_the_index_and_unfinished_results_are_left_alone(app: main.CdmApp, tmp_path: Path) -> None:
    index = (tmp_path / "studies" / "datastore_v2.json").read_text()
    assert "case.nii.gz" in index and "new.nii.gz" not in index
    assert app.datastore().list_images() == ["case"]
    assert not hasattr(app.datastore(), "_observer"), "it does not follow the folder"
    assert [path.name for path in results_folder(str(tmp_path / "studies"), tmp_path / "cache").iterdir()] == [UNFINISHED + "0" * 32]

"""The index of a folder: as the host keeps it, at a cost that does not grow with the images."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from monailabel.datastore.local import LocalDatastore

from lib import index as index_module
from lib.datastore import FolderDatastore
from tests.host.studies import head, write_nifti
from tests.waiting import wait_for

NUM_IMAGES = 300


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nifti(tmp_path_factory.mktemp("image") / "one.nii.gz", head())


@pytest.fixture
def studies(tmp_path: Path, image: Path) -> Path:
    folder = tmp_path / "studies"
    (folder / "labels" / "final").mkdir(parents=True)
    for number in range(NUM_IMAGES):
        os.link(image, folder / f"case{number:04d}.nii.gz")
    os.link(image, folder / "labels" / "final" / "case0007.nii.gz")
    (folder / "link.nii.gz").symlink_to(folder / "case0000.nii.gz")
    (folder / "dangling.nii.gz").symlink_to(folder / "nothing.nii.gz")
    return folder


@pytest.fixture
def datastore(studies: Path, tmp_path: Path) -> Iterator[FolderDatastore]:
    made = FolderDatastore(studies, tmp_path / "cache")
    yield made
    made._observer.stop()
    made._observer.join()


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Folders that were listed, image files that were asked for one by one, and entries that were turned into text."""
    seen: list[str] = []

    def watched(kind: str, function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            seen.append(kind)
            return function(*arguments)

        return call

    monkeypatch.setattr(index_module, "_names_in", watched("listed", index_module._names_in))
    monkeypatch.setattr(index_module, "_line", watched("written", index_module._line))
    monkeypatch.setattr(os.path, "realpath", watched("resolved", os.path.realpath))
    return seen


def on_disk(datastore: FolderDatastore) -> dict[str, object]:
    found: dict[str, object] = json.loads(Path(datastore._datastore_config_path).read_text())
    return found


def without_times(found: dict[str, object]) -> str:
    return json.dumps(found, sort_keys=True).replace(f'"ts": {int(time.time())}', "").replace(f'"ts": {int(time.time()) - 1}', "")


def test_the_index_is_the_hosts(studies: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(studies, copy, symlinks=True)
    host = LocalDatastore(str(copy))
    ours = FolderDatastore(studies, tmp_path / "cache", auto_reload=False)
    assert without_times(on_disk(ours)) == without_times(json.loads((copy / "datastore_v2.json").read_text()))
    assert ours.list_images() and set(ours.list_images()) == set(host.list_images())
    assert "link" in ours.list_images() and "dangling" not in ours.list_images()
    names = [[{key: Path(path).name for key, path in pair.items()} for pair in store.datalist()] for store in (ours, host)]
    assert names[0] == names[1] == [{"image": "case0007.nii.gz", "label": "case0007.nii.gz"}]


def test_the_host_reads_what_is_written(datastore: FolderDatastore, studies: Path, image: Path) -> None:
    datastore.update_image_info("case0003", {"note": 'a "quoted" ä', "nested": {"a": [1, None, True]}})
    datastore.save_label("case0004", str(image), "final", {"label_info": [{"name": "tumor"}]})
    host = LocalDatastore(str(studies), auto_reload=False, read_only=True)
    assert host.json() == datastore.json() == on_disk(datastore)
    assert host.get_image_info("case0003")["nested"] == {"a": [1, None, True]}
    assert host.get_label_info("case0004", "final")["label_info"] == [{"name": "tumor"}]


def test_a_change_costs_one_entry(datastore: FolderDatastore, image: Path, looks: list[str]) -> None:
    datastore.update_image_info("case0001", {"strategy": {}})  # the first writes everything
    looks.clear()
    datastore.update_image_info("case0001", {"strategy": {"first": {"ts": 1}}})
    datastore.save_label("case0002", str(image), "final", {})
    datastore.update_label_info("case0002", "final", {"note": 1})
    datastore.remove_label("case0002", "final")
    assert looks.count("written") == 4 and "listed" not in looks and looks.count("resolved") < 10
    assert on_disk(datastore) == datastore.json()


def test_counts_follow_every_change(datastore: FolderDatastore, image: Path, looks: list[str]) -> None:
    assert datastore.status() == {"total": NUM_IMAGES + 1, "completed": 1, "label_tags": {"final": 1}}
    datastore.save_label("case0009", str(image), "final", {})
    datastore.save_label("case0009", str(image), "original", {})
    assert datastore.status() == {"total": NUM_IMAGES + 1, "completed": 2, "label_tags": {"final": 2, "original": 1}}
    datastore.remove_image("case0009")
    assert datastore.status() == {"total": NUM_IMAGES, "completed": 1, "label_tags": {"final": 1}}
    assert not datastore.has_image("case0009") and "case0009" not in on_disk(datastore)["objects"]  # type: ignore[operator]


def test_own_files_cause_no_new_look(datastore: FolderDatastore, image: Path, looks: list[str]) -> None:
    settled: list[bool] = []
    settle = datastore._settle
    datastore._settle = lambda: (settle(), settled.append(True))  # type: ignore[method-assign,assignment,func-returns-value]
    datastore.save_label("case0005", str(image), "final", {})
    datastore.add_image("new", str(image), {})
    wait_for(lambda: settled, "the index to settle")
    assert "listed" not in looks


def test_foreign_files_are_found_at_once(datastore: FolderDatastore, studies: Path, image: Path, looks: list[str]) -> None:
    looks.clear()
    for number in range(50):
        os.link(image, studies / f"late{number:02d}.nii.gz")
    (studies / "case0000.nii.gz").unlink()
    wait_for(lambda: datastore.has_image("late49") and not datastore.has_image("case0000"), "the index to follow")
    assert looks.count("listed") <= 3 * 5, "fifty files, fifty looks"
    hidden = studies / ".partial"
    os.link(image, hidden)
    hidden.rename(studies / "renamed.nii.gz")
    wait_for(lambda: datastore.has_image("renamed") and on_disk(datastore) == datastore.json(), "the index to follow")


def test_a_killed_write_leaves_the_index_whole(datastore: FolderDatastore, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Path(datastore._datastore_config_path).read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        datastore.update_image_info("case0001", {"note": "lost"})
    assert Path(datastore._datastore_config_path).read_bytes() == before


def test_another_process_index_is_taken_over(datastore: FolderDatastore, studies: Path, tmp_path: Path) -> None:
    other = FolderDatastore(studies, tmp_path / "cache", auto_reload=False)
    other.update_image_info("case0002", {"note": "from outside"})
    wait_for(lambda: datastore.get_image_info("case0002").get("note") == "from outside", "the index to follow")
    datastore.update_image_info("case0003", {"note": "from here"})
    assert on_disk(datastore) == datastore.json()
    assert "from outside" in json.dumps(on_disk(datastore)), "the other's entry was written over"


def test_entries_that_lead_out_of_the_studies_are_dropped(studies: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.nii.gz").write_text("secret")
    index = studies / "datastore_v2.json"
    kept = FolderDatastore(studies, tmp_path / "cache", auto_reload=False).json()
    changed = json.loads(index.read_text())
    one = changed["objects"]["case0007"]
    changed["objects"] |= {
        "labels": {"image": {"info": {}, "ext": "/../../secret.nii.gz"}, "labels": {}},
        "../secret": {"image": {"info": {}, "ext": ".nii.gz"}, "labels": {}},
    }
    one["labels"] |= {"../..": {"info": {}, "ext": ".nii.gz"}, "original": {"info": {}, "ext": "/../../../../secret.nii.gz"}}
    for read_only in (True, False):
        index.write_text(json.dumps(changed))
        datastore = FolderDatastore(studies, tmp_path / "cache", auto_reload=False, read_only=read_only)
        assert datastore.json() == kept
        assert not datastore.get_image_uri("labels") and not datastore.get_image_uri("../secret")


def test_a_strategy_that_a_request_has_set_to_anything_is_none(datastore: FolderDatastore) -> None:
    datastore.update_image_info("case0001", {"strategy": 5})
    assert datastore.get_image_info("case0001")["strategy"] == {}, "the host adds to it when the image is offered"
    datastore.update_image_info("case0001", {"strategy": {"first": {"ts": 1}}})
    assert datastore.get_image_info("case0001")["strategy"] == {"first": {"ts": 1}}

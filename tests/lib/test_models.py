"""Which weights are in service when newer ones cannot be loaded."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from lib import models
from lib.models import MethodMissingError, ModelMissingError, ModelStore, class_names_of, known_methods
from lib.options import AppOptions


class Loaded:
    """Stands for a pipeline: the text of the weights file it was made of."""

    def __init__(self, model_version: str) -> None:
        self.model_version = model_version
        self.methods = ("student", "cdm_saliency") if "student" in model_version else ("cdm_saliency",)

    def to(self, device: str) -> Loaded:
        return self


class Folder:
    """A model folder; loading its weights raises `error`, after `meanwhile` was done, if there is one."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._weights = folder / "tiny" / "unet.safetensors"
        self._weights.parent.mkdir(parents=True)
        (folder / "tiny" / "model_index.json").write_text("{}")
        self.store, self.loads = ModelStore(AppOptions(folder)), 0
        self.error: Exception | None = None
        self.meanwhile: Any = None
        monkeypatch.setattr(models.CDMPipeline, "from_pretrained", self._load)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def publish(self, text: str) -> None:
        self._weights.write_text(text)

    def answers(self, device: str = "cpu") -> str:
        """Version of the weights that answer a request."""
        return self.store.pipeline(device).model_version

    def _load(self, folder: Path, **options: Any) -> Loaded:
        self.loads += 1
        if self.meanwhile:
            self.meanwhile()
        if self.error:
            raise self.error
        return Loaded(self._weights.read_text())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """The first weights are in service on both devices, the second are published."""
    found = Folder(tmp_path / "models", monkeypatch)
    found.publish("first")
    assert (found.answers("cpu"), found.answers("cuda")) == ("first", "first")
    found.publish("second weights")
    found.loads = 0
    return found


@pytest.mark.parametrize("error", [OSError("cut off"), ValueError("no such class"), RuntimeError("size mismatch")])
def test_broken_weights_are_tried_once_a_device_and_the_ones_before_serve_on(folder: Folder, error: Exception) -> None:
    folder.error = error
    assert [folder.answers(device) for device in ("cpu", "cuda") * 3] == ["first"] * 6
    assert folder.loads == 2
    folder.error = None
    folder.publish("third")
    assert (folder.answers("cpu"), folder.answers("cuda")) == ("third", "third")


def test_weights_that_one_device_cannot_load_are_in_service_on_the_other(folder: Folder) -> None:
    folder.error = RuntimeError("no kernel image is available for execution on the device")
    assert folder.answers("cuda") == "first"
    folder.error = None
    assert (folder.answers("cpu"), folder.answers("cuda")) == ("second weights", "first")


def test_want_of_memory_is_forgotten(folder: Folder) -> None:
    folder.error = torch.OutOfMemoryError("CUDA out of memory")
    assert folder.answers("cuda") == "first"
    folder.error = None
    assert folder.answers("cuda") == "second weights"


def test_weights_that_come_back_after_they_were_replaced_while_they_were_read(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when another version is put in service and taken back: what failed is neither of the two."""
    now = ["second"]
    monkeypatch.setattr(models, "fingerprint", lambda folder: ((now[0], 0, 0),))
    folder.meanwhile = lambda: now.append(now.pop() and "third")
    for error in (OSError("no such file"), None):
        folder.error, now[0] = error, "second"
        assert folder.answers() == "first"
    folder.meanwhile, now[0] = None, "second"
    assert folder.answers() == "second weights"


def test_weights_that_vanish_while_they_are_looked_at_are_not_missed(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def vanishing(self: Path, pattern: str) -> Any:
        yield self / "gone.safetensors"

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rglob", vanishing)
        assert folder.answers() == "first" and folder.store.methods() == ("cdm_saliency",)
    assert folder.loads == 0 and folder.answers() == "second weights"


def test_a_method_that_weights_being_read_bring_is_waited_for(folder: Folder) -> None:
    """Viewers would else be told of a method, because it is in the new index, and that it is not offered."""
    reading, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        reading.set()
        assert go_on.wait(30)

    folder.publish("third, with a student")
    folder.meanwhile = wait
    with ThreadPoolExecutor(2) as pool:
        loading = pool.submit(folder.answers)
        assert reading.wait(30)
        assert folder.answers() == "first", "what the weights in service can do does not wait"
        asked = pool.submit(folder.store.pipeline_for, "student", "cpu")
        with pytest.raises(TimeoutError):
            asked.result(0.2)
        go_on.set()
        assert asked.result(30).model_version == loading.result(30) == "third, with a student"
    with pytest.raises(MethodMissingError, match="'cldf' is not offered"):
        folder.store.pipeline_for("cldf", "cpu")
    assert folder.loads == 1


def test_without_weights_in_service_a_broken_model_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(tmp_path / "models", monkeypatch)
    folder.publish("first")
    folder.error = OSError("cut off")
    with pytest.raises(ModelMissingError, match="cut off"):
        folder.answers()
    folder.error = None
    assert folder.answers() == "first"


@pytest.mark.parametrize("names", ["[1, 2]", '"tumor"', '["tumor", ""]', "null", '{"tumor": 1}'])
def test_classes_that_are_no_list_of_names_are_none(tmp_path: Path, caplog: pytest.LogCaptureFixture, names: str) -> None:
    (tmp_path / "model_index.json").write_text(f'{{"description": {{"class_names": {names}}}}}')
    with caplog.at_level(logging.WARNING, models.__name__):
        assert class_names_of(tmp_path) == ()
    assert "cannot be read" in caplog.text
    (tmp_path / "model_index.json").write_text('{"description": {"class_names": ["edema", "tumor"]}}')
    assert class_names_of(tmp_path) == ("edema", "tumor")


@pytest.mark.parametrize("component", ["5", "true", '"abc"', "null", "[null, null]", "{}"])
def test_what_is_no_component_brings_no_method(tmp_path: Path, component: str) -> None:
    (tmp_path / "model_index.json").write_text(f'{{"pixel_decoder": {component}, "student": ["app_cdm", "Student"]}}')
    assert known_methods(tmp_path) == ("student", "cdm_saliency")

"""Every request that 3D Slicer's module makes, click by click, by its own code, against the real server."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote_plus

import nrrd
import numpy as np
import pytest
import requests
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from tests.host.answers import METHODS
from tests.host.server_process import Server
from tests.host.slicer_module import export_segments, import_mask, label_order, make_logic, module_source, requests_made, table_params
from tests.host.studies import head, write_dicom_series, write_nifti

pytestmark = [
    # Slicer's client leaves closing its sockets and files to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning"),
]
# ITK, and with it Slicer, reads no sheared NIfTI: a rotation about three axes, with anisotropic voxels.
TURN = Rotation.from_euler("xyz", [8, -13, 21], degrees=True).as_matrix()
OBLIQUE = np.vstack([np.column_stack([TURN @ np.diag([-1.2, 1.1, 4.8]), [30.0, -25.0, 7.0]]), [0, 0, 0, 1]])
FLIPPED = np.diag([-1.0, 1.0, 5.0, 1.0])
TURNED = OBLIQUE[:, [2, 0, 1, 3]]
RUN_TIMEOUT_S = 120


@pytest.fixture(scope="module")
def desk(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with images of several orientations, a DICOM series and a model of two classes."""
    folder, work = tmp_path_factory.mktemp("desk"), tmp_path_factory.mktemp("desk_server")
    write_nifti(folder / "oblique.nii.gz", head(0), OBLIQUE)
    write_nifti(folder / "flipped.nii.gz", head(1), FLIPPED)
    write_nifti(folder / "turned.nii.gz", head(2).transpose(2, 0, 1), TURNED)
    (folder / "series").mkdir()
    (work / "uid").write_text(write_dicom_series(folder / "series" / "flair"))
    shutil.copytree(model_dir, work / "models")
    server = Server(folder, work, ["--model-dir", str(work / "models")])
    try:
        yield server.wait()
    finally:
        code = server.stop()
    assert code == 0


@pytest.fixture
def logic(slicer_library: ModuleType, desk: Server, tmp_path: Path) -> Any:
    made = make_logic(slicer_library, desk.url, tmp_path / "slicer")
    (tmp_path / "slicer").mkdir(exist_ok=True)
    return made


@pytest.fixture(params=["oblique", "flipped", "turned", "series"])
def image_id(request: pytest.FixtureRequest, desk: Server) -> str:
    name = str(request.param)
    return (desk.log.parent / "uid").read_text() if name == "series" else name


def download(desk: Server, image_id: str, name: str, folder: Path) -> sitk.Image:
    """The image as Next Sample loads it."""
    reply = requests.get(f"{desk.url}/datastore/image?image={quote_plus(image_id)}", timeout=60)
    assert reply.status_code == 200, reply.text
    (folder / name).write_bytes(reply.content)
    return sitk.ReadImage(str(folder / name))


def refusal(error: pytest.ExceptionInfo[Exception]) -> str:
    """What Slicer shows under Show Details: the exception's arguments."""
    return str(error.value)


def test_every_request_of_the_module_is_replayed_here(slicer_library: ModuleType) -> None:
    """A newer module with another request fails here, and is to be replayed then."""
    made = requests_made(module_source(slicer_library))
    assert made == {
        *("info", "train_status", "next_sample", "datastore", "download_label", "create_session", "get_session"),
        *("upload_image", "infer", "save_label", "train_start", "train_stop"),
    }
    text = Path(__file__).read_text()
    assert all(f"logic.{name}(" in text for name in made)


def test_connect(logic: Any) -> None:
    """The refresh button, and everything that the module then shows."""
    info = logic.info()
    assert not info.get("config"), "the module would ask for an upgrade"
    assert logic.train_status(True) is False
    assert [name for name, model in info["models"].items() if model["type"] == "segmentation"] == list(METHODS)
    for model in info["models"].values():
        assert model["description"] and [*model["labels"].values()] == [1, 2]
        assert label_order({}, model) == info["labels"] == ["edema", "tumor"]
    assert all(isinstance(value, dict) for section in ("trainers", "strategies", "scoring") for value in info[section].values())
    statistics = next(iter(info["train_stats"].values()), {})
    assert 0 <= statistics.get("best_metric", 0) <= 1
    assert info["datastore"]["total"] == 4 and info["datastore"]["completed"] >= 0


@pytest.mark.parametrize("section", ["infer", "train", "activelearning"])
def test_option_tables_survive_being_shown(logic: Any, section: str) -> None:
    """What the table reads back untouched is what the server offered; numbers stay numbers."""
    info = logic.info()
    names = {"infer": "models", "train": "trainers", "activelearning": "strategies"}[section]
    for name, task in info[names].items():
        offered = {key: value[0] if isinstance(value, list) else value for key, value in task.get("config", {}).items()}
        assert table_params(info, section, name) == {key: offered[key] or type(offered[key])() for key in offered}


@pytest.mark.parametrize("strategy", ["uncertain", "next", "random", "untagged", "first"])
def test_next_sample(logic: Any, desk: Server, tmp_path: Path, strategy: str) -> None:
    """The file that the reply names is there for a viewer on this machine; another one downloads it."""
    sample = logic.next_sample(strategy, table_params(logic.info(), "activelearning", strategy))
    assert sample["id"] and sample["name"].endswith(".nii.gz")
    assert Path(sample["path"]).is_file()
    image = download(desk, sample["id"], sample["name"], tmp_path)
    assert image.GetDimension() == 3
    assert sample.get("checksum") is None, "the module would compare it"


@pytest.mark.parametrize("method", METHODS)
def test_run(logic: Any, desk: Server, tmp_path: Path, image_id: str, method: str) -> None:
    info = logic.info()
    image = download(desk, image_id, "image.nii.gz", tmp_path)
    file, params = logic.infer(method, image_id, table_params(info, "infer", method), session_id=None)
    segments = import_mask(file, label_order(params, info["models"][method]), image)
    assert list(segments) == info["labels"]
    assert params["ignored_params"] == [] and any(where.any() for where in segments.values())
    _, header = nrrd.read_header(file), nrrd.read_header(file)
    assert (header["space"], header["type"]) == ("left-posterior-superior", "uint8")
    np.testing.assert_allclose(header["space origin"], image.GetOrigin(), atol=1e-3)


def test_mask_lies_on_the_bright_lesion(logic: Any, desk: Server, tmp_path: Path, image_id: str) -> None:
    """The baseline that marks bright pixels, so that a mask that is flipped against its image would be seen."""
    info = logic.info()
    image = download(desk, image_id, "image.nii.gz", tmp_path)
    typed: dict[str, str | bool] = {"mode": "intensity", "gate": "off", "components": "all"}
    file, params = logic.infer("cdm_saliency", image_id, table_params(info, "infer", "cdm_saliency", **typed))
    where = np.logical_or.reduce([*import_mask(file, label_order(params, info["models"]["cdm_saliency"]), image).values()])
    pixels = sitk.GetArrayFromImage(image)
    lesion = (pixels > 640) & (pixels < 750)  # the rim is brighter, the tissue darker
    found, turned_round = where[lesion].mean(), np.flip(where)[lesion].mean()
    assert found > 0.8 and found > turned_round + 0.1, (found, turned_round)


def test_options_typed_into_the_table_arrive(logic: Any) -> None:
    typed: dict[str, str | bool] = {
        **{"noise_levels": "0.3, 0.5", "seed": "7", "threshold_rule": "fixed", "fixed_threshold": "0.25"},
        **{"gate": "off", "store_saliency": True, "device": "cpu"},
    }
    _, params = logic.infer("cdm_saliency", "oblique", table_params(logic.info(), "infer", "cdm_saliency", **typed))
    settings = {**params["settings"]["saliency"], **params["settings"]["mask"]}
    assert (list(settings["noise_levels"]), settings["seed"]) == ([0.3, 0.5], 7)
    assert (settings["threshold_rule"], settings["fixed_threshold"], settings["gate"]) == ("fixed", 0.25, "off")
    assert [item["tag"] for item in params["saliency"]] == ["saliency_edema", "saliency_tumor"]
    with pytest.raises(Exception, match=r"Status: 400.*fixed_threshold"):
        logic.infer("cdm_saliency", "oblique", table_params(logic.info(), "infer", "cdm_saliency", fixed_threshold="7"))


def test_locally_loaded_volume(logic: Any, desk: Server, tmp_path: Path) -> None:
    """Run uploads it for a while, again if that has expired; Submit Label stores it under its name in the scene, then the label."""
    name, info = "MR head 2", logic.info()
    saved = tmp_path / "tmpk3v_9x.nii.gz"  # as `tempfile` names it
    image = sitk.ReadImage(str(write_nifti(saved, head(11), OBLIQUE)))
    session_id = logic.create_session(str(saved))["session_id"]
    assert logic.get_session(session_id)
    for _ in range(2):
        file, params = logic.infer("student", name, table_params(info, "infer", "student"), session_id=session_id)
        segments = import_mask(file, label_order(params, info["models"]["student"]), image)
    logic.remove_session(session_id)
    if not logic.get_session(session_id):
        session_id = logic.create_session(str(saved))["session_id"]
    assert logic.infer("student", name, {}, session_id=session_id)[0]

    assert logic.upload_image(str(saved), name)["image"] == name
    stored = download(desk, name, "stored.nii.gz", tmp_path)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(stored), sitk.GetArrayFromImage(image))
    label = tmp_path / "label.nii.gz"
    reply = logic.save_label(name, str(label), export_segments(segments, image, label))
    assert set(reply["tags"]) == {"edema", "tumor"}
    requests.delete(f"{desk.url}/datastore/image", params={"id": name}, timeout=30).raise_for_status()


def test_mask_that_was_made_before_is_offered_with_its_labels(logic: Any, desk: Server, tmp_path: Path, image_id: str) -> None:
    """A batch leaves masks under `original`; Next Sample reads the order of labels from their info."""
    params = {"save_label": True, "label_tag": "original", "result_extension": ".nrrd"}
    logic.infer("student", image_id, params)
    info = logic.datastore()["objects"][image_id]["labels"]["original"]["info"]
    labels = list(info["params"]["label_names"])
    assert labels == ["edema", "tumor"]
    file = logic.download_label(image_id, "original")
    import_mask(file, labels, download(desk, image_id, "image.nii.gz", tmp_path))


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_submit_label_becomes_tags(logic: Any, desk: Server, tmp_path: Path, suffix: str) -> None:
    """The first and the last slice painted are enough; an empty segmentation says absent."""
    image = download(desk, "flipped", "image.nii.gz", tmp_path)
    empty = np.zeros(sitk.GetArrayViewFromImage(image).shape, dtype=bool)
    tumor = empty.copy()
    tumor[[1, 4], 20:22, 10:14] = True
    label = tmp_path / f"label{suffix}"
    reply = logic.save_label("flipped", str(label), export_segments({"edema": empty, "tumor": tumor}, image, label))
    assert reply["tags"] == {"edema": False, "tumor": [[1, 4]]}
    reply = logic.save_label("flipped", str(label), export_segments({"tumor": tumor, "edema": empty}, image, label))
    assert reply["tags"] == {"edema": False, "tumor": [[1, 4]]}, "segments in another order"
    assert logic.info()["datastore"]["completed"] >= 1, "Train is enabled from now on"
    reply = logic.save_label("flipped", str(label), export_segments({"edema": empty, "tumor": empty}, image, label))
    assert reply["tags"] == {"edema": False, "tumor": False}


def test_train_and_stop(logic: Any, desk: Server) -> None:
    info = logic.info()
    with pytest.raises(Exception, match=r"Status: 409.*too few tags") as error:
        logic.train_start("weak_label", table_params(info, "train", "weak_label"))
    assert "more patient(s)" in refusal(error)
    assert logic.train_stop() is None, "as Auto-Update Model asks before it trains"

    images = ["oblique", "flipped", "turned", (desk.log.parent / "uid").read_text()]
    tags = {image: {"tumor": [[1, 3]], "edema": [[2, 4]]} for image in images}
    requests.post(f"{desk.url}/tags/bulk", json={"tags": tags, "user": "ann"}, timeout=60).raise_for_status()
    params = table_params(info, "train", "weak_label", minutes="1", stages="classifier")
    started = logic.train_start("weak_label", params)
    assert started["id"] and started["start_ts"]
    deadline = time.monotonic() + RUN_TIMEOUT_S
    while not logic.train_status(True):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    status = logic.train_status(False)
    assert status["status"] in ("RUNNING", "SUBMITTED")
    statistics = next(iter(logic.info()["train_stats"].values()))
    assert statistics.get("total_epochs", 1) > 0
    stopped = logic.train_stop()
    assert stopped["status"] == "STOPPED" and stopped["end_ts"]
    assert stopped.get("result", stopped.get("details", [])[-1]), "the module reads the last line, at once after the start too"
    assert logic.train_status(False)["status"] == "STOPPED"
    assert logic.train_status(True) is False

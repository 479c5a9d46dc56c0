"""Servers that the host tests share: starting one takes seconds."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from app_cdm.data.volume import read_volume, write_mask
from tests.host.server_process import Server
from tests.host.studies import AFFINE, head, write_bad_images, write_dicom_series, write_nifti, write_picture
from tests.host.tiny_model import save_tiny_model

CLIENT = Path(sys.prefix) / "monailabel/plugins/slicer/MONAILabel/MONAILabelLib/client.py"


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one published model."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny_model(folder / "tiny")
    return folder


@pytest.fixture(scope="session")
def bare_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of the server that starts without a model."""
    return tmp_path_factory.mktemp("bare_models")


@pytest.fixture(scope="session")
def series_uid(studies: Path) -> str:
    """Id of the DICOM series among the studies."""
    return (studies / "patient" / "uid.txt").read_text()


@pytest.fixture(scope="session")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NIfTI files, a picture and a DICOM series in one folder."""
    folder = tmp_path_factory.mktemp("studies")
    for seed in range(3):
        write_nifti(folder / f"case{seed}.nii.gz", head(seed))
    write_picture(folder / "picture.png")
    uid = write_dicom_series(folder / "patient" / "flair")
    (folder / "patient" / "uid.txt").write_text(uid)
    return folder


@pytest.fixture(scope="session")
def bad_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that must be refused."""
    folder = tmp_path_factory.mktemp("bad") / "images"
    write_bad_images(folder)
    return folder


@pytest.fixture(scope="session")
def servers(studies: Path, model_dir: Path, bare_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    """`main`: the usual server. `bare`: no model yet, uploads up to 1 MiB. Both start at the same time."""
    main = Server(studies, tmp_path_factory.mktemp("main"), ["--model-dir", str(model_dir)])
    bare_studies = tmp_path_factory.mktemp("bare_studies")
    write_nifti(bare_studies / "case.nii.gz", head(7))
    limits = ["--upload-limit-mb", "1", "--allow-origin", "http://viewer.example:3000"]
    bare = Server(bare_studies, tmp_path_factory.mktemp("bare"), ["--model-dir", str(bare_models), *limits])
    try:
        yield {"main": main.wait(), "bare": bare.wait()}
    finally:
        codes = {"main": main.stop(), "bare": bare.stop()}
    assert codes == {"main": 0, "bare": 0}, "a server did not end cleanly on Ctrl-C"


@pytest.fixture(scope="session")
def server(servers: dict[str, Server]) -> Server:
    """The usual server."""
    return servers["main"]


@pytest.fixture(scope="session")
def series(tag_server: Server) -> str:
    """Id of the DICOM series among the studies of `tag_server`."""
    return (tag_server.studies / "patient" / "uid.txt").read_text()


@pytest.fixture(scope="session")
def tag_server(bare_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server to be tagged on: it has classes, but no model yet."""
    folder = tmp_path_factory.mktemp("tag_studies")
    for seed in range(3):
        write_nifti(folder / f"case{seed}.nii.gz", head(seed))
    write_nifti(folder / "turned.nii.gz", head().transpose(2, 0, 1), AFFINE[:, [2, 0, 1, 3]])
    source = read_volume(folder / "case0.nii.gz")
    write_mask(source.array.astype(np.uint8), source, folder / "volume.nrrd")
    write_picture(folder / "picture.png")
    (folder / "patient" / "uid.txt").write_text(write_dicom_series(folder / "patient" / "flair"))
    arguments = ["--model-dir", str(bare_models), "--classes", "tumor, edema"]
    server = Server(folder, tmp_path_factory.mktemp("tag_server"), arguments)
    try:
        yield server.wait()
    finally:
        code = server.stop()
    assert code == 0, "the server did not end cleanly on Ctrl-C"


@pytest.fixture(scope="session")
def url(server: Server) -> str:
    """Address of the usual server."""
    return server.url


@pytest.fixture(scope="session")
def slicer_library() -> ModuleType:
    """3D Slicer's own request code, as the monailabel wheel ships it."""
    spec = importlib.util.spec_from_file_location("slicer_client", CLIENT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it imports cgi
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def slicer(slicer_library: ModuleType, url: str, tmp_path: Path) -> Any:
    """A client as Slicer makes it."""
    return slicer_library.MONAILabelClient(url, tmpdir=str(tmp_path), client_id="test")

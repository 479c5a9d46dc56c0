"""A real browser on real servers; both take seconds to start, so tests share them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from playwright.sync_api import Browser, sync_playwright

from app_cdm.data.volume import read_volume, write_mask
from tests.host.server_process import Server
from tests.host.studies import head, write_dicom_series, write_nifti, write_picture
from tests.host.tiny_model import save_tiny_model
from tests.page.reader import Reader
from tests.page.volumes import RAMPS, write_halves, write_ramp
from tests.training.synthetic import blob_volume

# Without a graphics card, WebGL is drawn by the processor; nothing is to be asked of any other machine.
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"),
)
NUM_BLOBS, NUM_SLICES = 8, 8
PRESENT = range(2, 5)


@pytest.fixture(scope="module")  # two at a time cannot be driven from one thread, and other folders have their own
def browser() -> Iterator[Browser]:
    """Headless Chromium."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no browser: install the Debian package chromium")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one published model of the classes edema and tumor, the second of which it hardly knows."""
    folder = tmp_path_factory.mktemp("page_models")
    save_tiny_model(folder / "tiny", training={"held_out": {"gate/edema": 0.9, "gate/tumor": 0.55}})
    return folder


@pytest.fixture(scope="session")
def server(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Studies of every kind, and a model with an opinion."""
    folder = tmp_path_factory.mktemp("page_studies")
    for number in range(4):
        write_nifti(folder / f"case{number}.nii.gz", head(number))
    for name, (axis, affine) in RAMPS.items():
        write_ramp(folder / f"ramp_{name}.nii.gz", axis, affine)
    write_halves(folder)
    write_picture(folder / "picture.png")
    source = read_volume(folder / "case0.nii.gz")
    write_mask((source.array / 8).astype(np.uint8), source, folder / "nrrd.nrrd")
    (folder / "patient" / "uid.txt").parent.mkdir()
    (folder / "patient" / "uid.txt").write_text(write_dicom_series(folder / "patient" / "flair"))
    running = Server(folder, tmp_path_factory.mktemp("page_server"), ["--model-dir", str(model_dir)])
    try:
        yield running.wait()
    finally:
        code = running.stop()
    assert code == 0, "the server did not end cleanly on Ctrl-C"


@pytest.fixture(scope="session")
def series(server: Server) -> str:
    """Id of the DICOM series."""
    return (server.studies / "patient" / "uid.txt").read_text()


@pytest.fixture(scope="session")
def blob_studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight volumes; every other one has a blob on slices 2 to 4."""
    folder = tmp_path_factory.mktemp("blobs")
    generator = np.random.default_rng(0)
    for number in range(NUM_BLOBS):
        image, _ = blob_volume(generator, NUM_SLICES, PRESENT if number % 2 == 0 else range(0))
        nib.save(nib.Nifti1Image(image, np.diag([-1.0, 1.0, 5.0, 1.0])), folder / f"case{number}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def window(browser: Browser, server: Server) -> Iterator[Reader]:
    """A window on `server`: the script of the page is compiled once for all tests of a file, which takes longer than most of them."""
    with Reader(browser, server.url) as at_page:
        yield at_page


@pytest.fixture
def reader(window: Reader) -> Iterator[Reader]:
    """Somebody called ann at the page of `server`, in a browser that knows nothing else."""
    yield window
    window.leave()

"""A real PACS, real label servers on it and a real browser; tests are skipped, with the reason, where a program is missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from demo.cases import make_case
from demo.dicom import series_uid, write_series
from demo.orthanc import Orthanc
from demo.study import DICOM_CASE
from tests.e2e.ohif import Ohif
from tests.e2e.programs import FLAGS, find_chromium, missing_browser, missing_pacs
from tests.host.server_process import REPOSITORY, Server
from tests.host.studies import AXIAL, SAGITTAL, write_dicom_series
from tests.host.tiny_model import save_tiny_model

TAGGED = ("tagged0", "tagged1", "tagged2", "tagged3")
SCREENSHOTS = REPOSITORY / "build" / "e2e"


@dataclass(frozen=True)
class Studies:
    """What is in the PACS.

    Attributes:
        series: patient -> SeriesInstanceUID.
        files: patient -> its DICOM files.
    """

    series: dict[str, str]
    files: dict[str, list[Path]]

    def study(self, patient: str) -> str:
        """StudyInstanceUID of a patient."""
        return str(pydicom.dcmread(self.files[patient][0], stop_before_pixels=True).StudyInstanceUID)


@pytest.fixture(scope="session")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Studies:
    """An axial series numbered from head to feet, a sagittal one, four more to be tagged, and the demo's."""
    folder = tmp_path_factory.mktemp("pacs_studies")
    series = {
        "axial": write_dicom_series(folder / "axial", seed=1, axes=AXIAL, patient="axial", step_mm=-5.0),
        "sagittal": write_dicom_series(folder / "sagittal", seed=2, axes=SAGITTAL, patient="sagittal"),
        **{name: write_dicom_series(folder / name, seed=seed, patient=name) for seed, name in enumerate(TAGGED, start=3)},
        DICOM_CASE.case_id: series_uid(DICOM_CASE.case_id),
    }
    write_series(make_case(DICOM_CASE), folder / DICOM_CASE.case_id)
    return Studies(series, {patient: sorted((folder / patient).iterdir()) for patient in series})


@pytest.fixture(scope="session")
def pacs(studies: Studies, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """Orthanc with the studies."""
    if missing_pacs():
        pytest.skip(missing_pacs())
    with Orthanc(tmp_path_factory.mktemp("orthanc")) as orthanc:
        orthanc.store(file for files in studies.files.values() for file in files)
        yield orthanc


@pytest.fixture(scope="session")
def servers(pacs: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    """`tiny`: an untrained model of two classes. `shipped`: the model that ships. Both start at the same time."""
    models = tmp_path_factory.mktemp("models")
    save_tiny_model(models / "tiny")
    tiny = Server(pacs.url, tmp_path_factory.mktemp("tiny"), ["--model-dir", str(models)])  # type: ignore[arg-type]
    shipped = Server(pacs.url, tmp_path_factory.mktemp("shipped"), ["--model", "cdm_lgg_flair"])  # type: ignore[arg-type]
    try:
        yield {"tiny": tiny.wait(), "shipped": shipped.wait()}
    finally:
        codes = {"tiny": tiny.stop(), "shipped": shipped.stop()}
    assert codes == {"tiny": 0, "shipped": 0}, "a server did not end cleanly on Ctrl-C"


@pytest.fixture(scope="module")  # two at a time cannot be driven from one thread, and other folders have their own
def browser() -> Iterator[Browser]:
    """Chromium without a display."""
    if missing_browser():
        pytest.skip(missing_browser())
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def window(browser: Browser) -> Iterator[Page]:
    """A page for all tests of a file, which compiles the scripts of the viewer once."""
    context = browser.new_context(viewport={"width": 1600, "height": 900}, accept_downloads=False)
    yield context.new_page()
    context.close()


@pytest.fixture
def page(window: Page) -> Iterator[Page]:
    """An empty page of a browser that remembers nothing."""
    yield window
    if window.url.startswith("http"):
        window.evaluate("() => { localStorage.clear(); sessionStorage.clear(); }")
    for opened in window.context.pages:
        if opened != window:
            opened.close()
    window.context.clear_cookies()
    window.goto("about:blank")


@pytest.fixture
def tiny(servers: dict[str, Server], page: Page) -> Ohif:
    """The viewer of the server with the tiny model."""
    return Ohif(page, servers["tiny"].url, SCREENSHOTS)


@pytest.fixture
def shipped(servers: dict[str, Server], page: Page) -> Ohif:
    """The viewer of the server with the model that ships."""
    return Ohif(page, servers["shipped"].url, SCREENSHOTS)

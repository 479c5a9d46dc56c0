"""What the page asks the server, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from playwright.sync_api import Browser

from app_cdm.data.volume import read_volume
from lib.page.niivue import FOLDER, NIIVUE, digest
from tests.host.answers import assert_refused, nifti
from tests.host.dicomweb_process import DicomWeb
from tests.host.server_process import Server
from tests.host.studies import SHAPE, write_dicom_series
from tests.page.reader import Reader


def ask(server: Server, path: str, **params: Any) -> requests.Response:
    return requests.get(f"{server.url}/tagging/{path}", params=params, timeout=120)


def voxels(server: Server, image: str) -> np.ndarray:
    about = ask(server, f"case/{image}").json()
    reply = requests.get(f"{server.url}/{about['volume']}", timeout=60)
    assert reply.status_code == 200
    suffix = ".nii.gz" if reply.content[:2] == b"\x1f\x8b" else ".nii"
    return np.asarray(nifti(reply.content, suffix).dataobj)


def test_a_case_says_how_its_slices_are_counted(server: Server) -> None:
    about = ask(server, "case/ramp_axial_first_up").json()
    assert (about["slicing_axis"], about["num_slices"], about["shape"]) == (0, 12, [12, 40, 44])
    assert about["classes"] == ["edema", "tumor"] and set(about["tags"]) == {"edema", "tumor"}
    assert about["study"] is None and about["ohif"] is None
    picture = ask(server, "case/picture").json()
    assert (picture["slicing_axis"], picture["num_slices"]) == (2, 1)


@pytest.mark.parametrize("name", ["case0.nii.gz", "nrrd.nrrd", "picture.png"])
def test_voxels_come_in_the_order_of_the_file(server: Server, name: str) -> None:
    wanted = read_volume(server.studies / name).array
    found = voxels(server, name.split(".")[0])
    np.testing.assert_array_equal(found.reshape(wanted.shape), wanted)


def test_a_dicom_series_comes_as_nifti_and_knows_its_study(server: Server, series: str) -> None:
    assert voxels(server, series).shape == SHAPE
    about = ask(server, f"case/{series}").json()
    assert ask(server, f"study/{about['study']}").json()["images"] == [series]


def test_unknown_names_are_refused(server: Server) -> None:
    assert_refused(ask(server, "case/nobody"), 404, "nobody")
    assert_refused(ask(server, "case/nobody/volume"), 404, "nobody")
    assert_refused(ask(server, "case/..%2Fetc"), 404)
    assert_refused(ask(server, "study/1.2.3"), 404, "1.2.3")
    assert ask(server, "js/..%2f..%2fserver/page.py").status_code == 404
    assert ask(server, "vendor/../../server/page.py").status_code == 404


def test_the_list_is_given_in_parts(server: Server) -> None:
    whole = ask(server, "cases", limit=200).json()
    assert whole["found"] == whole["total"] == len(whole["cases"])
    parts = [ask(server, "cases", limit=5, offset=offset).json()["cases"] for offset in range(0, whole["total"], 5)]
    assert [row["image"] for part in parts for row in part] == sorted(row["image"] for row in whole["cases"])
    assert {row["image"] for row in ask(server, "cases", query="RAMP_cor").json()["cases"]} == {"ramp_coronal_front", "ramp_coronal_back"}
    requests.put(f"{server.url}/tags/halves_ras", json={"tags": {"edema": False}, "user": "dora"}, timeout=30).raise_for_status()
    (row,) = ask(server, "cases", query="dora").json()["cases"]
    assert (row["image"], row["tags"], row["users"]) == ("halves_ras", {"edema": False}, ["dora"])
    assert "halves_ras" in {row["image"] for row in ask(server, "cases", state="open").json()["cases"]}, "tumor is not tagged yet"
    assert_refused(ask(server, "cases", limit=0), 400, "limit")


def test_the_state_names_model_and_progress(server: Server) -> None:
    state = ask(server, "state").json()
    assert state["model"] == {"name": "tiny", "version": "original", "methods": ["student", "cldf", "cdm_saliency"]}
    assert state["progress"]["images"] == ask(server, "cases").json()["total"]
    assert (state["user"], state["is_training"]) == (None, False)


def test_the_vendored_viewer_is_the_one_that_npm_has() -> None:
    assert digest((FOLDER / NIIVUE.name).read_bytes()) == NIIVUE.sha256
    licence = (FOLDER / "niivue.LICENSE.txt").read_text()
    assert "BSD 2-Clause" in licence and NIIVUE.version in licence


@pytest.fixture(scope="module")
def pacs_server(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A label server whose studies are a PACS with two series of two studies."""
    folder, work = tmp_path_factory.mktemp("page_pacs"), tmp_path_factory.mktemp("page_dicomweb")
    for number in range(2):
        write_dicom_series(folder / f"series{number}", seed=number)
    pacs = DicomWeb(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MONAI_LABEL_DICOMWEB_CACHE_PATH", str(work / "host_cache"))
        running = Server(pacs.url, work, ["--model-dir", str(model_dir)])  # type: ignore[arg-type]
    try:
        yield running.wait()
    finally:
        running.stop()
        pacs.stop()


def test_a_study_of_a_pacs_is_opened_by_its_uid_and_leads_to_ohif(browser: Browser, pacs_server: Server) -> None:
    image = ask(pacs_server, "cases").json()["cases"][0]["image"]
    study = ask(pacs_server, f"case/{image}").json()["study"]
    with Reader(browser, pacs_server.url) as reader:
        reader.open(None, study=study)
        reader.sees_case(image)
        link = reader.page.locator("#ohif")
        assert link.is_visible() and link.get_attribute("href") == f"{pacs_server.url}/ohif/viewer?StudyInstanceUIDs={study}"
        reader.hides_opinion().sees_tissue()
        reader.goes_to(2).press("f").goes_to(4).press("l")
        reader.sees_tag("edema", "slices 2–4")
        assert reader.stored(image)["edema"] == [[2, 4]]
    assert_refused(ask(pacs_server, "study/1.2.3"), 404, "1.2.3")

"""OHIF on a real PACS: every model from the panel, and the overlay in the page against the server's mask, voxel by voxel."""

from __future__ import annotations

import numpy as np
import pytest
import requests

from app_cdm.data.volume import Volume
from app_cdm.metrics.overlap import dice
from demo.study import DICOM_CASE
from tests.e2e.conftest import Studies
from tests.e2e.ohif import Ohif
from tests.host.answers import METHODS, ask_mask, nifti


def image_of(url: str, series: str) -> Volume:
    """The image as the server has it."""
    read = nifti(requests.get(f"{url}/datastore/image", params={"image": series}, timeout=60).content)
    return Volume(np.asanyarray(read.dataobj).astype(np.float32), np.asarray(read.affine))


def assert_same(viewer: Ohif, series: str, model: str) -> np.ndarray:
    """The overlay is the server's mask, and the image under it the server's image, by position in the patient."""
    image = image_of(viewer.url, series)
    expected, reply = ask_mask(viewer.url, series, model=model)
    shown = viewer.overlay().on_grid(image)
    assert np.array_equal(viewer.image().on_grid(image), image.array), "the page shows another image than the server segments"
    assert viewer.segments() == reply["label_names"]
    for name, number in reply["label_names"].items():
        assert np.array_equal(shown == number, expected == number), (model, name, dice(shown == number, expected == number))
    return shown


def centre_mm(mask: np.ndarray, image: Volume) -> np.ndarray:
    """Position of the middle of a mask (RAS)."""
    return image.affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + image.affine[:3, 3]


@pytest.mark.parametrize("patient", ["axial", "sagittal"])
def test_every_model_of_the_panel_draws_the_servers_mask(tiny: Ohif, studies: Studies, patient: str) -> None:
    tiny.open_study(patient)
    assert studies.study(patient) in tiny.page.url
    tiny.connect()
    assert tuple(tiny.models()) == METHODS
    drawn = {}
    for model in METHODS:
        tiny.run(model)
        drawn[model] = assert_same(tiny, studies.series[patient], model)
        tiny.screenshot(f"{patient}_{model}")
    assert all(set(np.unique(mask)) == {0, 1, 2} for mask in drawn.values())
    assert len({mask.tobytes() for mask in drawn.values()}) == len(METHODS), "two models drew the same mask: was Run heard?"
    assert not tiny.foreign, "the viewer asked somebody else"


def test_model_that_ships_finds_the_lesion(shipped: Ohif, studies: Studies) -> None:
    series = studies.series[DICOM_CASE.case_id]
    shipped.open_study(DICOM_CASE.case_id)
    shipped.connect()
    shipped.run("student")
    mask = assert_same(shipped, series, "student")
    assert mask.any()
    shipped.look_at(centre_mm(mask, image_of(shipped.url, series)))
    shipped.screenshot("shipped_student")


def test_next_sample_names_a_study_that_lacks_a_tag(tiny: Ohif, studies: Studies) -> None:
    tags = {"tags": {"edema": False, "tumor": True}, "user": "e2e"}
    for patient in studies.series.keys() - {"sagittal"}:
        requests.put(f"{tiny.url}/tags/{studies.series[patient]}", json=tags, timeout=30).raise_for_status()
    tiny.open_study("axial")
    tiny.connect()
    shown = tiny.next_sample()
    tiny.screenshot("next_sample")
    assert shown["Series Instance UID"] == studies.series["sagittal"]
    assert shown["Study Instance UID"] == studies.study("sagittal")
    assert (shown["Modality"], shown["Patient ID"]) == ("MR", "sagittal")
    for patient in studies.series.keys() - {"sagittal"}:
        requests.post(f"{tiny.url}/tags/{studies.series[patient]}/undo", timeout=30).raise_for_status()


def test_viewer_links_to_the_tagging_page_of_the_open_study(tiny: Ohif, studies: Studies) -> None:
    link = tiny.page.locator("#app-cdm-tagging")
    tiny.list_studies()
    assert link.is_hidden()
    tiny.open_study("sagittal")
    link.wait_for(state="visible")
    link.hover()
    assert link.get_attribute("href") == f"/tagging/?study={studies.study('sagittal')}"

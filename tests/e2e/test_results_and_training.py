"""From OHIF to the tagging page: a mask is accepted, read back from the PACS by other software, tags are given, a model is trained."""

from __future__ import annotations

from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import requests
from dicomweb_client import DICOMwebClient
from playwright.sync_api import Page, expect

from app_cdm.data.volume import Volume
from app_cdm.metrics.overlap import dice
from demo.orthanc import Orthanc
from demo.study import DICOM_CASE
from tests.e2e.conftest import SCREENSHOTS, TAGGED, Studies
from tests.e2e.ohif import WAIT_MS, Ohif
from tests.e2e.test_ohif import centre_mm
from tests.host.answers import nifti
from tests.waiting import wait_for

pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")
TRAIN_LIMIT_S = 280


def open_tagging_page(viewer: Ohif, patient: str) -> Page:
    """Follows the link in the viewer, and says who tags."""
    viewer.open_study(patient)
    with viewer.page.context.expect_page() as opened:
        viewer.page.locator("#app-cdm-tagging").click()
    page = opened.value
    page.locator("#user-name").fill("e2e", timeout=WAIT_MS)
    page.keyboard.press("Enter")
    return page


def segmentations(pacs: Orthanc, study: str) -> list[pydicom.Dataset]:
    """Every DICOM segmentation of a study, fetched from the PACS itself."""
    client = DICOMwebClient(pacs.url)
    series = client.search_for_series(study, search_filters={"Modality": "SEG"})
    return [item for found in series for item in client.retrieve_series(study, found["0020000E"]["Value"][0])]


def segmented(pacs: Orthanc) -> set[str]:
    """The series that any DICOM segmentation in the PACS was drawn on."""
    client = DICOMwebClient(pacs.url)
    found = client.search_for_series(search_filters={"Modality": "SEG"})
    uids = [(item["0020000D"]["Value"][0], item["0020000E"]["Value"][0]) for item in found]
    stored = [entry for study, uid in uids for entry in client.retrieve_series_metadata(study, uid)]
    return {entry["00081115"]["Value"][0]["0020000E"]["Value"][0] for entry in stored}


def volume_by_highdicom(dataset: pydicom.Dataset, files: list[Path]) -> dict[str, np.ndarray]:
    """Segments by name, `(X, Y, Z)` bool, the slices in order of their position: by software that has nothing to do with the server."""
    sources = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    row, column = np.array(sources[0].ImageOrientationPatient, dtype=float).reshape(2, 3)
    sources.sort(key=lambda item: float(np.cross(row, column) @ np.array(item.ImagePositionPatient, dtype=float)))
    read = highdicom.seg.Segmentation.from_dataset(dataset, copy=False)
    planes = read.get_pixels_by_source_instance([item.SOPInstanceUID for item in sources], assert_missing_frames_are_empty=True)
    names = [segment.SegmentLabel for segment in read.SegmentSequence]
    return {name: planes[..., index].transpose(2, 1, 0) > 0 for index, name in enumerate(names)}


def assert_viewer_loads(viewer: Ohif, study: str, mask: nibabel.Nifti1Image, numbers: dict[str, int], name: str) -> None:
    """The Segmentation mode of the viewer reads the stored object, with a reader of its own, to the same voxels.

    Args:
        viewer: the viewer.
        study: StudyInstanceUID.
        mask: what was accepted.
        numbers: segment name -> its value in the mask; a segment without voxels is not stored.
        name: of the screenshot.
    """
    accepted = np.asarray(mask.dataobj)
    image = Volume(accepted.astype(np.float32), np.asarray(mask.affine))
    viewer.open_stored(study)
    viewer.look_at(centre_mm(accepted > 0, image))
    viewer.screenshot(name)
    shown, segments = viewer.stored()
    on_grid = shown.on_grid(image)
    assert set(segments) == {segment for segment, number in numbers.items() if (accepted == number).any()}
    for segment, value in segments.items():
        assert np.array_equal(on_grid == value, accepted == numbers[segment]), (
            segment,
            dice(on_grid == value, accepted == numbers[segment]),
        )


def test_accepted_mask_is_read_back_from_the_pacs(tiny: Ohif, studies: Studies, pacs: Orthanc) -> None:
    series, study = studies.series["sagittal"], studies.study("sagittal")
    page = open_tagging_page(tiny, "sagittal")
    with page.expect_response(lambda reply: "/results/" in reply.url and "/accept" in reply.url, timeout=WAIT_MS) as answered:
        page.locator("#accept").click(timeout=WAIT_MS)
    expect(page.locator("#status")).to_contain_text("Mask accepted", timeout=WAIT_MS)
    page.screenshot(path=SCREENSHOTS / "accepted.png")
    result = answered.value.url.split("/results/")[1].split("/")[0]
    shown = nifti(requests.get(f"{tiny.url}/results/{result}/mask", timeout=60).content)
    mask = np.asarray(shown.dataobj)
    assert set(np.unique(mask)) == {0, 1, 2}

    stored = segmentations(pacs, study)
    assert len(stored) == 1
    read = volume_by_highdicom(stored[0], studies.files["sagittal"])
    assert set(read) == {"edema", "tumor"}
    for number, name in enumerate(("edema", "tumor"), start=1):
        assert dice(read[name], mask == number) == 1.0, name
    assert_viewer_loads(tiny, study, shown, {"edema": 1, "tumor": 2}, "stored_sagittal")
    label = nifti(requests.get(f"{tiny.url}/datastore/label", params={"label": series, "tag": "final"}, timeout=60).content)
    assert np.array_equal(np.asarray(label.dataobj), mask) and np.allclose(label.affine, shown.affine, atol=1e-4)
    # Other servers store segmentations here too: a list that is being renewed may be a moment behind them.
    drawn_on = segmented(pacs)
    assert series in drawn_on
    wait_for(lambda: requests.get(f"{tiny.url}/info/", timeout=60).json()["datastore"]["completed"] == len(drawn_on), "the count")


def test_map_is_shown_over_the_image_with_its_values(shipped: Ohif, studies: Studies, pacs: Orthanc, tmp_path: Path) -> None:
    series, study = studies.series[DICOM_CASE.case_id], studies.study(DICOM_CASE.case_id)
    result = requests.post(f"{shipped.url}/results/student", params={"image": series}, timeout=120).json()["result"]
    address = f"{shipped.url}/results/{result}"
    made = requests.post(f"{address}/dicom", params={"kind": "map", "class": "tumor"}, timeout=60)
    made.raise_for_status()
    (tmp_path / "map.dcm").write_bytes(made.content)
    pacs.store([tmp_path / "map.dcm"])
    expected = nifti(requests.get(f"{address}/map/tumor", timeout=60).content)
    image = Volume(np.asarray(expected.dataobj, dtype=np.float32), np.asarray(expected.affine))

    shown = shipped.open_map(study)
    shipped.look_at(centre_mm(image.array > image.array.max() / 2, image))
    shipped.screenshot("map")
    assert image.array.max() > 0.5
    assert np.abs(shown.on_grid(image) - image.array).max() < 1e-5


def test_server_without_that_copy_reads_the_same_from_the_pacs(shipped: Ohif, tiny: Ohif, studies: Studies) -> None:
    """The other server has never seen the label: it fetches the segmentation."""
    where = {"params": {"label": studies.series["sagittal"], "tag": "final"}, "timeout": 60}
    here, there = (nifti(requests.get(f"{url}/datastore/label", **where).content) for url in (tiny.url, shipped.url))  # type: ignore[arg-type]
    names = requests.get(f"{shipped.url}/datastore/label/info", **where).json()["label_info"]  # type: ignore[arg-type]
    numbers = {item["name"]: value for value, item in enumerate(names, start=1)}
    for value, name in enumerate(("edema", "tumor"), start=1):
        assert dice(np.asarray(there.dataobj) == numbers[name], np.asarray(here.dataobj) == value) == 1.0
    assert numbers["tumor"] == 1, "tumor is the only class of the shipped model, edema comes after it"


@pytest.mark.timeout(700)
def test_tags_from_the_page_train_a_model(tiny: Ohif, studies: Studies) -> None:
    tags = {studies.series[name]: {"edema": index % 2 == 0, "tumor": index % 2 == 1} for index, name in enumerate(TAGGED)}
    requests.post(f"{tiny.url}/tags/bulk", json={"tags": tags, "user": "e2e"}, timeout=120).raise_for_status()
    page = open_tagging_page(tiny, "axial")
    expect(page.locator("#slice-text")).to_contain_text("Slice", timeout=WAIT_MS)
    page.locator("[data-action=absent]").click()
    expect(page.locator("#classes")).to_contain_text("absent", timeout=WAIT_MS)
    wait_for(lambda: requests.get(f"{tiny.url}/tags/{studies.series['axial']}", timeout=30).json()["tags"]["edema"] is False, "the tag")
    page.screenshot(path=SCREENSHOTS / "tagged.png")

    page.keyboard.press("t")
    page.locator("select[name=stages]").select_option("classifier and diffusion")
    page.locator("input[name=minutes]").fill("0.1")
    page.get_by_role("button", name="Start training").click()
    ended = ("published", "kept back", "failed")
    wait_for(lambda: stats(tiny.url).get("state") == "running", "the training to begin", TRAIN_LIMIT_S)
    wait_for(lambda: stats(tiny.url).get("state") in ended, "the training to end", TRAIN_LIMIT_S)
    page.screenshot(path=SCREENSHOTS / "trained.png")
    box = page.locator("header").bounding_box()
    assert box is not None and page.viewport_size is not None and box["width"] <= page.viewport_size["width"], "a long name widens the page"
    assert stats(tiny.url)["state"] in ("published", "kept back"), stats(tiny.url)
    assert requests.get(f"{tiny.url}/versions/", timeout=30).json()["versions"]


def stats(url: str) -> dict[str, object]:
    """What the trainer says of itself."""
    found = requests.get(f"{url}/info/", timeout=60).json()["train_stats"]["weak_label"]
    assert isinstance(found, dict)
    return found

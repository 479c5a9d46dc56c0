"""Real series through the whole path: PACS, viewer, mask, accepted, back from the PACS; skipped where the data is absent."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
import requests

from demo.orthanc import Orthanc
from tests.e2e.ohif import Ohif
from tests.e2e.test_ohif import assert_same, centre_mm, image_of
from tests.e2e.test_results_and_training import assert_viewer_loads, segmentations, volume_by_highdicom
from tests.host.answers import nifti
from tests.host.server_process import REPOSITORY

pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")
QUICK_SLICES = 30
DATA = Path(os.environ.get("APP_CDM_DATA", REPOSITORY.parent / "shared" / "data")) / "dicom"


def first_study(name: str) -> list[Path]:
    """The DICOM files of the first study of a data set; of a longer series so many slices in a row as a quick run has time for."""
    found: dict[str, dict[str, list[tuple[int, Path]]]] = {}
    for file in sorted((DATA / name).rglob("*.dcm")):
        header = pydicom.dcmread(file, stop_before_pixels=True)
        series = found.setdefault(str(header.StudyInstanceUID), {}).setdefault(str(header.SeriesInstanceUID), [])
        series.append((int(header.InstanceNumber), file))
    most = None if os.environ.get("APP_CDM_WHOLE_SERIES") else QUICK_SLICES
    return [file for series in next(iter(found.values()), {}).values() for _, file in sorted(series)[:most]]


@pytest.mark.timeout(700)
@pytest.mark.parametrize("name", ["lgg_derived", "chaos_ct_set3"])
def test_real_series_goes_through_the_whole_path(name: str, shipped: Ohif, pacs: Orthanc) -> None:
    files = first_study(name)
    if not files:
        pytest.skip(f"no DICOM files in {DATA / name}: set APP_CDM_DATA")
    pacs.store(files)
    study = str(pydicom.dcmread(files[0], stop_before_pixels=True).StudyInstanceUID)
    shipped.open_address(study)
    series = shipped.active_series()
    shipped.connect()
    shipped.run("student")
    drawn = assert_same(shipped, series, "student")
    if drawn.any():
        shipped.look_at(centre_mm(drawn, image_of(shipped.url, series)))
    shipped.screenshot(name)

    params = {"gate": "off"}  # the model knows brains only, and may well find nothing
    result = requests.post(f"{shipped.url}/results/student", params={"image": series}, json=params, timeout=300)
    assert result.status_code == 200, result.text
    address = f"{shipped.url}/results/{result.json()['result']}"
    mask = nifti(requests.get(f"{address}/mask", timeout=60).content)
    kept = np.asarray(mask.dataobj)
    assert kept.any()
    accepted = requests.post(f"{address}/accept", params={"user": "e2e"}, timeout=300)
    assert accepted.status_code == 200, accepted.text
    stored = [item for item in segmentations(pacs, study) if item.ReferencedSeriesSequence[0].SeriesInstanceUID == series]
    sources = [file for file in files if pydicom.dcmread(file, stop_before_pixels=True).SeriesInstanceUID == series]
    read = volume_by_highdicom(stored[0], sources)
    for segment, number in result.json()["labels"].items():
        assert np.array_equal(read.get(segment, np.zeros(kept.shape, dtype=bool)), kept == number), segment
    assert_viewer_loads(shipped, study, mask, result.json()["labels"], f"stored_{name}")

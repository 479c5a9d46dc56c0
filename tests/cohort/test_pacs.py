"""A DICOMweb server as a cohort: what a query finds, series fetched whole and not kept, what fails; in part with a real PACS."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest

from app_cdm.cli import main
from app_cdm.cohort.holder import this_process
from app_cdm.cohort.pacs import PREFIX, Pacs, folder_prefix, parse_query
from app_cdm.commands.environment import PASSWORD
from app_cdm.data.volume import read_volume
from demo.orthanc import Orthanc
from tests.cohort.processes import exit_with, start
from tests.e2e.programs import missing_pacs
from tests.host.dicomweb_process import DicomWeb
from tests.host.studies import AXIAL, SAGITTAL, SHAPE, write_dicom_series

LOGIN = ("reader", "not-in-any-log")


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two MR, a CT and a series that is no image."""
    folder = tmp_path_factory.mktemp("series")
    write_dicom_series(folder / "mr", seed=1, axes=AXIAL, patient="mr", step_mm=-5.0)
    write_dicom_series(folder / "mr2", seed=2, axes=SAGITTAL, patient="mr2")
    write_dicom_series(folder / "ct", seed=3, axes=SAGITTAL, patient="ct", modality="CT")
    write_dicom_series(folder / "other", seed=4, patient="other", modality="OT")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def uids(series: dict[str, Path]) -> dict[str, str]:
    return {name: str(pydicom.dcmread(folder / "IM0000").SeriesInstanceUID) for name, folder in series.items()}


@pytest.fixture(scope="module")
def server(series: dict[str, Path]) -> Iterator[DicomWeb]:
    """A small server that ignores conditions on dates and does not know pages."""
    running = DicomWeb(series["mr"].parent)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def orthanc(series: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    if missing_pacs():
        pytest.skip(missing_pacs())
    with Orthanc(tmp_path_factory.mktemp("orthanc"), users=dict([LOGIN])) as running:
        running.store(file for folder in series.values() for file in sorted(folder.iterdir()))
        yield running


def test_query_finds_images_of_the_modalities_asked_for(server: DicomWeb, uids: dict[str, str], tmp_path: Path) -> None:
    pacs = Pacs(server.url, None, tmp_path)
    names = {text: {case.name for case in pacs.find_cases(parse_query(text.split()))} for text in ("", "Modality=MR", "Modality=CT,MR")}
    assert names[""] == names["Modality=CT,MR"] == {uids["mr"], uids["mr2"], uids["ct"]}
    assert names["Modality=MR"] == {uids["mr"], uids["mr2"]}
    assert [case.name for case in pacs.find_cases({})] == sorted(names[""]), "every process sees the same order"
    with pytest.raises(FileNotFoundError, match=r"no image series matches \{'Modality': 'US'\}"):
        pacs.find_cases({"Modality": "US"})


def test_series_is_read_as_from_a_folder_and_not_kept(
    server: DicomWeb, series: dict[str, Path], uids: dict[str, str], tmp_path: Path
) -> None:
    (case,) = Pacs(server.url, None, tmp_path).find_cases({"PatientID": "ct"})
    fetched, local = case.read(), read_volume(series["ct"])
    assert (fetched.array == local.array).all()
    assert (fetched.affine == local.affine).all()
    assert case.source.endswith(f"/series/{uids['ct']}")
    assert not list(tmp_path.iterdir())


def test_series_that_is_too_large_or_came_in_part_is_a_failure(server: DicomWeb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (case,) = Pacs(server.url, None, tmp_path, limit_mb=1).find_cases({"PatientID": "ct"})
    monkeypatch.setattr("app_cdm.cohort.pacs.MIB", 4096)
    with pytest.raises(ValueError, match="is larger than 1 MiB: raise --fetch-limit-mb"):
        case.read()
    monkeypatch.undo()
    with pytest.raises(ValueError, match="6 of 7 instances came from the server"):
        case.read.func(*case.read.args[:2], SHAPE[2] + 1)  # type: ignore[attr-defined]
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_in_the_cache_is_removed(server: DicomWeb, tmp_path: Path) -> None:
    me = this_process()
    dead = replace(me, started=me.started - 999)
    others = [me, replace(dead, host="elsewhere"), replace(dead, space="another boot or container")]
    kept = {*(f"{folder_prefix(holder)}abc" for holder in others), f"{PREFIX}other", "mine"}
    for name in (*kept, f"{folder_prefix(dead)}abc"):
        (tmp_path / name / "x").mkdir(parents=True)
    Pacs(server.url, None, tmp_path).sweep()
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_series_lies_where_a_sweep_knows_its_process(server: DicomWeb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pacs, seen = Pacs(server.url, None, tmp_path), []

    def look(folder: Path) -> None:
        pacs.sweep()
        seen.extend(path.name for path in tmp_path.iterdir())

    monkeypatch.setattr("app_cdm.cohort.pacs.read_dicom_folder", look)
    pacs.find_cases({"PatientID": "ct"})[0].read()
    (name,) = seen
    assert name.startswith(folder_prefix(this_process()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dicomweb", "ftp://pacs"], "--dicomweb 'ftp://pacs': must be the http or https URL"),
        (["--dicomweb", "http://me:secret@pacs/dicom-web"], "no name and password in the URL"),
        (["--dicomweb", "{url}", "--query", "Modality"], "--query 'Modality': must be KEYWORD=VALUE"),
        (["--dicomweb", "{url}", "--query", "Modality=MR", "--query", "Modality=CT"], "--query Modality: stands twice"),
        (["--dicomweb", "{url}", "--query", "Modalty=MR"], "--query Modalty: no DICOM keyword"),
        (["--dicomweb", "{url}", "--dicomweb-user", "me"], "go together"),
        (["--dicomweb", "{url}", "--fetch-limit-mb", "0"], "must be positive"),
        (["--dicomweb", "http://127.0.0.1:9/dicom-web"], "127.0.0.1"),
        (["--input", "x", "--query", "Modality=MR"], "give --dicomweb, not --input"),
    ],
)
def test_wrong_options_are_one_line(
    model: Path, server: DicomWeb, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    given = [item.replace("{url}", server.url) for item in arguments]
    assert main(["infer", "--model", str(model), *given, "--output", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert message in told
    assert "secret" not in told
    assert not (tmp_path / "out").exists()


def test_cohort_of_a_query_with_a_series_that_disappears(
    model: Path, series: dict[str, Path], uids: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = DicomWeb(series["mr"].parent)
    whole = server.of_series
    server.of_series = lambda uid: [] if uid == uids["mr2"] else whole(uid)  # type: ignore[method-assign]
    try:
        arguments = ["infer", "--model", str(model), "--dicomweb", server.url, "--query", "Modality=MR", "--output", str(tmp_path)]
        assert main(arguments) == 1
        assert json.loads(capsys.readouterr().out)["failed"] == 1
        assert "404" in json.loads((tmp_path / f"{uids['mr2']}.error.json").read_text())["reason"]
        server.of_series = whole  # type: ignore[method-assign]
        assert main(arguments) == 0
    finally:
        server.stop()
    assert sorted(path.name for path in tmp_path.glob("*_mask.nii.gz")) == sorted(f"{uids[name]}_mask.nii.gz" for name in ("mr", "mr2"))
    assert not list(tmp_path.glob("*.error.json"))


def test_real_pacs_with_a_login_by_two_processes(
    orthanc: Orthanc, model: Path, series: dict[str, Path], uids: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, cache = tmp_path / "out", tmp_path / "cache"
    command = ["infer", "--model", str(model), "--dicomweb", orthanc.url, "--dicomweb-user", LOGIN[0], "--query", "Modality=MR"]
    command += ["--query", "PatientID=mr*", "--query", "SeriesDescription=*FL?IR", "--cache-dir", str(cache), "--output", str(output)]
    monkeypatch.setenv(PASSWORD, LOGIN[1])
    workers = [start(exit_with, command) for _ in range(2)]
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    with (output / "summary.csv").open(newline="") as file:
        assert sorted((row["name"], row["status"]) for row in csv.DictReader(file)) == sorted(
            (uids[name], "done") for name in ("mr", "mr2")
        )
    assert not list(cache.iterdir())
    for name in ("mr", "mr2"):
        mask, image = read_volume(output / f"{uids[name]}_mask.nii.gz"), read_volume(series[name])
        assert mask.array.shape == image.array.shape
        assert mask.affine == pytest.approx(image.affine, abs=1e-4)


def test_real_pacs_refuses_a_wrong_password_and_a_query_without_answer(orthanc: Orthanc, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="401"):
        Pacs(orthanc.url, (LOGIN[0], "wrong"), tmp_path).find_cases({})
    with pytest.raises(FileNotFoundError, match="no image series matches"):
        Pacs(orthanc.url, LOGIN, tmp_path).find_cases({"StudyDate": "19000101-19000102"})

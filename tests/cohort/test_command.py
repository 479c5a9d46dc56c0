"""`infer` over a cohort as it is started: its table, what it refuses, signals, launchers."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from app_cdm.cli import main
from app_cdm.cohort.cases import find_cases
from app_cdm.cohort.claims import Claims
from app_cdm.commands import infer
from app_cdm.commands.environment import PASSWORD, USER, Launch, read_launch, read_login
from app_cdm.commands.options import load_model
from app_cdm.data.volume import read_volume
from app_cdm.pipeline import CDMPipeline
from tests.cohort.processes import exit_with, start
from tests.launchers import ACCELERATE
from tests.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 240


def rows(output: Path) -> list[dict[str, str]]:
    with (output / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def command(model: Path, source: Path, output: Path, *more: str) -> list[str]:
    return ["infer", "--model", str(model), "--input", str(source), "--output", str(output), *more]


def test_table_of_a_cohort_from_csv(model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.nii.gz").write_text("no image")
    table = tmp_path / "cohort.csv"
    table.write_text(f"image,name\n{images / 'case_00.nii.gz'},first\n{images / 'case_01.nii.gz'},group/second\nbroken.nii.gz,third\n")
    output = tmp_path / "out"
    assert main(command(model, table, output)) == 1
    told = capsys.readouterr()
    assert json.loads(told.out) == {"images": 3, "failed": 1, "output": str(output)}
    assert "3 cases: 2 done, 1 failed; every one in" in told.err
    assert "failed: third: broken.nii.gz" in told.err
    first, second, third = rows(output)
    version = CDMPipeline.from_pretrained(model).model_version
    for row, name in ((first, "first"), (second, "group/second")):
        result = json.loads((output / f"{name}.json").read_text())
        mask = read_volume(output / f"{name}_mask.nii.gz")
        for index, item in enumerate(("edema", "tumor"), start=1):
            count = int((mask.array == index).sum())
            assert int(row[f"voxels_{item}"]) == count
            assert float(row[f"ml_{item}"]) == pytest.approx(count * abs(np.linalg.det(mask.affine[:3, :3])) / 1000)
            assert float(row[f"score_{item}"]) == result["class_scores"][item]
        assert (row["name"], row["status"], row["model_version"], row["reason"]) == (name, "done", version, "")
        assert float(row["seconds"]) == result["seconds"] > sum(result["timings"].values()) * 0.9
    assert (third["status"], third["voxels_tumor"], third["seconds"]) == ("failed", "", "")
    assert third["source"] == str(tmp_path / "broken.nii.gz")
    assert third["reason"].startswith("broken.nii.gz")
    assert third["reason"] == json.loads((output / "third.error.json").read_text())["reason"]
    assert [path.name for path in (output / ".claims").iterdir()] == ["run.json"]


def test_rerun_makes_the_same_table_and_nothing_else(model: Path, images: Path, tmp_path: Path) -> None:
    assert main(command(model, images, tmp_path)) == 0
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("case*")}
    table = (tmp_path / "summary.csv").read_bytes()
    assert len(before) == 24
    (tmp_path / "summary.csv").unlink()
    assert main(command(model, images, tmp_path)) == 0
    assert (tmp_path / "summary.csv").read_bytes() == table
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("case*")} == before
    (tmp_path / "case_05.json").unlink()
    assert main(command(model, images, tmp_path)) == 0
    changed = [path.name for path in tmp_path.glob("case*") if path.stat().st_mtime_ns != before[path.name]]
    assert sorted(changed) == ["case_05.json", "case_05_mask.nii.gz"]


def test_another_method_into_the_same_folder_is_refused(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = images / "case_00.nii.gz"
    assert main(command(model, image, tmp_path)) == 0
    capsys.readouterr()
    assert main(command(model, image, tmp_path, "--set", "gate=off")) == 1
    refused = capsys.readouterr().err
    assert "(mask.gate 'auto', now 'off')" in refused
    assert "replace them with --overwrite, or give another --output" in refused
    assert main(command(model, image, tmp_path, "--set", "gate=off", "--overwrite")) == 0
    assert json.loads((tmp_path / "case_00.json").read_text())["settings"]["mask"]["gate"] == "off"
    assert main(command(model, image, tmp_path, "--set", "gate=off", "--format", ".nrrd")) == 1
    assert "format None, now '.nrrd'" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_lets_go_of_the_case_and_leaves_nothing_half_written(model: Path, tmp_path: Path, number: signal.Signals, code: int) -> None:
    table, output = tmp_path / "cohort.csv", tmp_path / "out"
    table.write_text("image\nnever.dcm\n")
    os.mkfifo(tmp_path / "never.dcm")  # whoever reads it waits
    worker = start(exit_with, command(model, table, output))
    try:
        wait_for(lambda: list((output / ".claims").glob("never-*.1.claim")) or worker.exitcode is not None, "the claim")
        os.kill(worker.pid or 0, number)
        worker.join(60)
    finally:
        worker.kill()
    assert worker.exitcode == code
    assert [path.name for path in output.rglob("*")] == [".claims", "run.json"]


def test_full_or_forbidden_output_is_one_clear_line(model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("in the way")
    assert main(command(model, images, tmp_path / "out")) == 1
    assert capsys.readouterr().err.startswith(f"error: cannot write to {tmp_path / 'out'}: ")


def test_accelerate_with_two_processes_does_every_case_once(model: Path, images: Path, tmp_path: Path) -> None:
    launched = [*ACCELERATE, "app_cdm", "--verbose", *command(model, images, tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(launched, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    names = [case.name for case in find_cases([images], tmp_path)]
    segmented = [line.rpartition("done: ")[2] for line in done.stderr.splitlines() if "done: " in line]
    assert Counter(segmented) == Counter(names)
    assert [row["status"] for row in rows(tmp_path / "out")] == ["done"] * 12
    assert json.loads(done.stdout)["images"] == 12, "the first process alone speaks"


def test_launchers_say_which_process_this_is() -> None:
    assert read_launch({}) == Launch()
    torchrun = {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
        "TORCHELASTIC_RUN_ID": "run",
        "OMP_NUM_THREADS": "3",
    }
    assert read_launch(torchrun) == Launch(5, 8, 1, 4, 3, "torchrun run")
    slurm = {"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0"}
    assert read_launch(slurm) == Launch(2, 4, 1, 1, None, "slurm 77.0")
    assert read_launch({"SLURM_PROCID": "0", "SLURM_JOB_ID": "77"}) == Launch(), "a process of the batch script, not of srun"
    nameless = {"RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}
    assert read_launch(nameless).identity == read_launch({**nameless, "RANK": "1"}).identity != ""
    with pytest.raises(ValueError, match="RANK = 2 of WORLD_SIZE = 2"):
        read_launch({"RANK": "2", "WORLD_SIZE": "2"})
    with pytest.raises(ValueError, match="WORLD_SIZE = 'two' in the environment: must be a number"):
        read_launch({"WORLD_SIZE": "two"})


def test_login_is_whole_or_none() -> None:
    assert read_login(None, {}) is None
    assert read_login("me", {PASSWORD: "secret", USER: "other"}) == ("me", "secret")
    assert read_login(None, {PASSWORD: "secret", USER: "other"}) == ("other", "secret")
    for user, environment in (("me", {}), (None, {PASSWORD: "secret"}), (None, {USER: "me"})):
        with pytest.raises(ValueError, match="go together"):
            read_login(user, environment)


def test_processes_of_one_machine_share_its_cores_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.setattr(infer, "cores", lambda: 12)
    options = infer.argparse.Namespace(device="auto")
    infer.prepare(options, Launch(0, 4, 0, 4))
    infer.prepare(options, Launch(0, 16, 0, 16))
    infer.prepare(options, Launch(0, 4, 0, 4, threads=2))
    infer.prepare(options, Launch())
    assert given == [3, 1]
    assert options.device == "auto" or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for asked, rank, device in (("auto", 3, "cuda:1"), ("cuda", 2, "cuda:0"), ("cpu", 3, "cpu"), ("cuda:0", 3, "cuda:0")):
        options = infer.argparse.Namespace(device=asked)
        infer.prepare(options, Launch(rank, 4, rank, 4, threads=1))
        assert options.device == device


def test_process_started_by_hand_takes_the_gpu_that_it_is_told(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    taken: list[str] = []
    monkeypatch.setattr(CDMPipeline, "to", lambda self, device: taken.append(device))
    for asked in ("cuda:1", "auto"):
        options = infer.argparse.Namespace(model=model, device=asked, method=None, set=[])
        infer.prepare(options, Launch())
        load_model(options)
    assert taken == ["cuda:1", "cuda"]
    with pytest.raises(SystemExit):
        main(["infer", "--help"])
    assert "cuda:N for GPU N" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("device", "gpus", "message"),
    [
        ("cuda:9", 2, "the GPUs here are cuda:0 to cuda:1"),
        ("cuda:0", 0, "no usable GPU; leave it out or say cpu"),
        ("gpu", 2, "must be auto, cpu, cuda, or cuda:N"),
        ("cuda:-1", 2, "must be auto, cpu, cuda, or cuda:N"),
        ("cuda:0,1", 2, "must be auto, cpu, cuda, or cuda:N"),
    ],
)
@pytest.mark.parametrize("asking", ["infer", "train"])
def test_device_that_is_not_there_is_said(
    asking: str,
    device: str,
    gpus: int,
    message: str,
    model: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    (tmp_path / "tags.csv").write_text("image,class,tag\ncase_00,blob,1-2\n")
    train = ["train", "--images", str(images), "--tags", str(tmp_path / "tags.csv"), "--output", str(tmp_path / "run")]
    infer_command = command(model, images / "case_00.nii.gz", tmp_path / "masks")
    assert main([*(train if asking == "train" else infer_command), "--device", device]) == 1
    error = capsys.readouterr().err
    assert f"--device {device}: " in error
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_joining_with_overwrite_says_what_it_does_not_do(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = images / "case_00.nii.gz"
    assert main(command(model, image, tmp_path)) == 0
    written = (tmp_path / "case_00.json").stat().st_mtime_ns
    with Claims(tmp_path / ".claims") as other:
        other.join()
        assert main(command(model, image, tmp_path, "--overwrite")) == 0
    assert "what is done there is not done again" in capsys.readouterr().err
    assert (tmp_path / "case_00.json").stat().st_mtime_ns == written


def test_who_interrupts_is_told_how_to_continue(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(infer, "run", interrupt)
    for more, told in (([], "command again to continue"), (["--overwrite"], "command again, without --overwrite, to continue")):
        assert main(command(model, images, tmp_path, *more)) == 130
        assert told in capsys.readouterr().err

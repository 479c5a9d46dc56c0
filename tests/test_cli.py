"""The commands from end to end on a tiny study: train, calibrate, infer and evaluate, their output and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from app_cdm.cli import main
from app_cdm.pipeline import CDMPipeline
from tests.training.synthetic import tiny_settings, write_blob_study

QUICK = ["--set", "noise_levels=[0.6]", "--set", "num_draws=1", "--set", "flip=false"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    write_blob_study(folder / "train", count=4)
    write_blob_study(folder / "test", count=2, seed=9, split="test")
    (folder / "settings.json").write_text(json.dumps(tiny_settings(40).replace(preset="mine").to_dict()))
    return folder


@pytest.fixture(scope="module")
def model(workspace: Path) -> Path:
    assert main(train_arguments(workspace, "run", "--diffusion-steps", "3")) == 0
    return workspace / "run" / "model"


def train_arguments(workspace: Path, output: str, *more: str) -> list[str]:
    study = workspace / "train"
    return ["train", "--images", str(study / "images"), "--tags", str(study / "slices.csv"), "--settings", str(workspace / "settings.json"),
            "--output", str(workspace / output), *more]  # fmt: skip


def test_train_writes_a_model_and_says_where(workspace: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(train_arguments(workspace, "run", "--diffusion-steps", "3")) == 0  # finished already: nothing is trained again
    assert json.loads(capsys.readouterr().out) == {"model": str(model)}
    settings = json.loads((workspace / "run" / "run.json").read_text())["settings"]
    assert settings["preset"] == "mine"
    assert settings["classifier"]["num_steps"] == 40
    assert settings["diffusion"]["num_steps"] == 3
    assert CDMPipeline.from_pretrained(model).class_names == ("blob",)


def test_sizes_are_those_of_the_model_that_is_trained_further(workspace: Path, model: Path) -> None:
    """Named nowhere: neither a preset nor settings."""
    arguments = [
        argument for argument in train_arguments(workspace, "further") if argument not in ("--settings", str(workspace / "settings.json"))
    ]
    assert main([*arguments, "--initial-model", str(model), "--stages", "classifier", "--classifier-steps", "1"]) == 0
    further, before = (CDMPipeline.from_pretrained(folder) for folder in (workspace / "further" / "model", model))
    assert further.description.preprocess == before.description.preprocess
    assert further.classifier.config.block_out_channels == before.classifier.config.block_out_channels


def test_infer_writes_masks_scores_and_maps(workspace: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = workspace / "test" / "images"
    arguments = [
        "infer",
        "--model",
        str(model),
        "--input",
        str(images),
        "--output",
        str(tmp_path),
        "--saliency",
        *QUICK,
        "--set",
        "gate=off",
    ]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == {"images": 2, "failed": 0, "output": str(tmp_path)}
    names = ("case_0", "case_1")
    files = {f"{name}{ending}" for name in names for ending in ("_mask.nii.gz", "_saliency_blob.nii.gz", ".json")}
    assert {path.name for path in tmp_path.iterdir()} == files | {"summary.csv", ".claims"}
    for name in names:
        source, mask = (nib.load(path) for path in (images / f"{name}.nii.gz", tmp_path / f"{name}_mask.nii.gz"))
        np.testing.assert_allclose(mask.affine, source.affine)
        assert mask.shape == source.shape
        assert mask.get_data_dtype() == np.uint8
        summary = json.loads((tmp_path / f"{name}.json").read_text())
        voxels = int((np.asarray(mask.dataobj) == 1).sum())
        assert summary["voxels"] == {"blob": voxels}
        assert summary["ml"]["blob"] == pytest.approx(voxels * 5 / 1000)
        assert summary["settings"]["saliency"]["noise_levels"] == [0.6]
        assert summary["model_version"] == CDMPipeline.from_pretrained(model).model_version


def test_infer_skips_what_is_done_goes_on_after_a_bad_image_and_says_so(
    workspace: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"no image")
    good = workspace / "test" / "images" / "case_0.nii.gz"
    output = tmp_path / "out"
    arguments = ["infer", "--model", str(model), "--input", str(bad), str(good), "--output", str(output), *QUICK]
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out.strip().splitlines()[-1])["failed"] == 1
    assert "error: bad: bad.nii.gz" in captured.err
    done = output / "case_0.json"
    written = done.stat().st_mtime_ns
    main(arguments)
    assert done.stat().st_mtime_ns == written
    main([*arguments, "--overwrite"])
    assert done.stat().st_mtime_ns > written


def test_evaluate_prints_and_writes_a_report(workspace: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.json"
    arguments = ["evaluate", "--model", str(model), "--dataset", str(workspace / "test"), "--column", "has_blob", "--output", str(report)]
    assert main([*arguments, *QUICK]) == 0
    assert "|" in capsys.readouterr().out
    assert json.loads(report.read_text())["evaluation"]["reference_values"] == []
    assert main([*arguments, *QUICK, "--limit", "1", "--reference-values", "1", "3"]) == 0
    assert json.loads(report.read_text())["evaluation"]["reference_values"] == [1, 3]
    capsys.readouterr()
    assert main([*arguments, *QUICK, "--split", "train"]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_calibrate_writes_a_model_with_chosen_settings(
    workspace: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = workspace / "test"
    arguments = ["calibrate", "--model", str(model), "--images", str(study / "images"), "--tags", str(study / "slices.csv")]
    assert main([*arguments, "--output", str(tmp_path / "model"), *QUICK, "--set", "num_denoising_steps=2"]) == 0
    record = json.loads(capsys.readouterr().out)
    calibrated = CDMPipeline.from_pretrained(tmp_path / "model")
    chosen = calibrated.default_settings
    assert chosen.mask.gate_threshold == record["gate_threshold"]["chosen"]
    assert list(chosen.saliency.noise_levels) == record["noise_levels"]["chosen"]
    assert dict(calibrated.config.training)["calibration"]["num_images"] == 2
    assert "gradient_noise_level" not in record
    assert main([*arguments, "--output", str(tmp_path / "gradient"), *QUICK, "--modes", "gradient"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert "noise_levels" not in record
    chosen = CDMPipeline.from_pretrained(tmp_path / "gradient").default_settings.saliency
    assert chosen.gradient_noise_level == record["gradient_noise_level"]["chosen"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["infer", "--model", "{tmp}", "--input", "x", "--output", "y"], "holds no model"),
        (["infer", "--model", "{model}", "--input", "{tmp}/none.nii", "--output", "{tmp}"], "does not exist"),
        (["infer", "--model", "{model}", "--input", "{tmp}", "--output", "{tmp}"], "holds no image"),
        (["infer", "--model", "{model}", "--input", "{tmp}", "--output", "{tmp}", "--set", "speed=9"], "--set speed: no such setting"),
        (["infer", "--model", "{model}", "--input", "{tmp}", "--output", "{tmp}", "--set", "mode=fast"], "must be one of"),
        (["infer", "--model", "{model}", "--input", "{tmp}", "--output", "{tmp}", "--set", "num_draws=0"], "must lie in"),
        (["train", "--images", "{tmp}", "--tags", "{tmp}/none.csv", "--output", "{tmp}/run"], "none.csv"),
        (["train", "--images", "{tmp}", "--tags", "a", "--tags", "b", "--output", "{tmp}/run"], "equally often"),
        (["train", "--images", "{tmp}", "--tags", "a", "--classes", "tumor", "--output", "{tmp}/run"], "NAME=COLUMN"),
    ],
)
def test_errors_are_one_line_and_exit_code_1(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([item.replace("{tmp}", str(tmp_path)).replace("{model}", str(model)) for item in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert not captured.out


def test_another_run_in_the_same_folder_is_an_error(workspace: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(train_arguments(workspace, "run", "--seed", "99")) == 1
    assert "other settings or tags" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["paint"], ["infer"], ["train", "--preset", "huge"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "calibrate", "infer", "evaluate", "export"])
def test_every_option_is_explained(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert "--output" in capsys.readouterr().out


def test_module_can_be_run_and_shows_its_help_without_importing_networks() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "app_cdm", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert "not a medical device" in shown.stdout
    assert all(command in shown.stdout for command in ("train", "calibrate", "infer", "evaluate", "export"))
    imported = {line.rsplit("|", 1)[-1].strip() for line in shown.stderr.splitlines()}
    assert "app_cdm.cli" in imported
    assert not imported & {"torch", "monai", "diffusers", "scipy"}


def test_unknown_command_names_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["trian", "--output", "run"])
    assert stopped.value.code == 2
    assert "'train', 'calibrate', 'infer', 'evaluate', 'export'" in capsys.readouterr().err

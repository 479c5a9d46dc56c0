"""Two processes over gloo give what one process gives, up to rounding, and either goes on where the other stopped."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from app_cdm.cli import main
from app_cdm.networks.student import StudentNetwork
from app_cdm.pipeline import CDMPipeline
from app_cdm.training.checkpoint import load_checkpoint
from app_cdm.training.optimization import OptimizerSettings
from app_cdm.training.team import Team
from tests.launchers import TORCHRUN, run_both
from tests.training.synthetic import tiny_settings, write_blob_study
from tests.training.team_process import NAMES, run

pytestmark = pytest.mark.timeout(900)
LAUNCH_LIMIT_S = 400
ROOT = Path(__file__).resolve().parents[2]
STEPS, TOLERANCE = 8, 1e-4  # rounding, enlarged by Adam


def launch(*command: str) -> None:
    """Runs a command to its end, with one thread a process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LAUNCH_LIMIT_S, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.fixture(scope="module")
def teams(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight steps of two processes, each of which writes a file with its rank: that there are two of them is part of what is tested."""
    folder = tmp_path_factory.mktemp("team")
    run_both("tests.training.team_process", [str(folder), str(STEPS)], ROOT, tmp_path_factory.mktemp("log") / "log", LAUNCH_LIMIT_S)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_end_as_one(teams: Path, tmp_path: Path, name: str) -> None:
    alone = run(name, tmp_path, STEPS, Team())
    first, second = (load_file(teams / f"{name}_{rank}_of_2.safetensors") for rank in range(2))
    assert first.keys() == second.keys() == alone.keys()
    moved = max(float((alone[key] - start).abs().max()) for key, start in run(name, tmp_path / "fresh", 1, Team()).items() if key in alone)
    assert moved > 10 * TOLERANCE, "the steps must change the weights, or equality says nothing"
    for key, value in alone.items():
        assert torch.equal(first[key], second[key]), f"{key}: the processes drifted apart"
        torch.testing.assert_close(first[key], value, rtol=0, atol=TOLERANCE, msg=lambda text, key=key: f"{key}: {text}")


def test_main_process_alone_writes(teams: Path) -> None:
    for name in NAMES:
        task = "classifier" if name == "bags" else name
        assert [path.name for path in (teams / name).iterdir() if path.is_file()] == [f"{task}.checkpoint.safetensors"]
        assert len(list((teams / name / "tensorboard" / task).glob("events*"))) == 1
        assert load_checkpoint(teams / name / f"{task}.checkpoint.safetensors")[1]["step"] == STEPS


@pytest.mark.parametrize("name", NAMES)
def test_one_process_goes_on_where_two_stopped(teams: Path, tmp_path: Path, name: str) -> None:
    whole = run(name, tmp_path / "whole", STEPS + 4, Team())
    (checkpoint,) = (teams / name).glob("*.checkpoint.safetensors")
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / checkpoint.name).write_bytes(checkpoint.read_bytes())
    resumed = run(name, parts, STEPS + 4, Team())
    assert f"loss.{STEPS:03d}" not in resumed
    for key, value in resumed.items():
        torch.testing.assert_close(value, whole[key], rtol=0, atol=TOLERANCE, msg=lambda text, key=key: f"{key}: {text}")


def test_batch_smaller_than_the_team_is_refused(tmp_path: Path) -> None:
    team = Team()
    team.size = 8
    with pytest.raises(ValueError, match="a batch of 7 cannot be shared by 8 processes; use fewer"):
        run("diffusion", tmp_path, 1, team)


def test_train_command_of_two_processes_writes_the_model_of_one(tmp_path: Path) -> None:
    """All four stages by `torchrun`: the maps are shared, decoder and student are trained by the main process."""
    write_blob_study(tmp_path / "study", count=6)
    short = OptimizerSettings(num_steps=4, batch_size=6, num_warmup_steps=1, learning_rate=1e-3, ema_decay=0.9, mixed_precision=False)
    settings = tiny_settings(4).to_dict()
    settings["classifier"]["mixed_precision"] = settings["diffusion"]["mixed_precision"] = False
    settings["cldf"] |= {"num_rounds": 1, "hidden_channels": 16, "embedding_dim": 4, "optimizer": short.to_dict()}
    settings["cldf"]["features"] |= {"blocks": [0, 1]}
    settings["student"] |= {"channels": [8, 16], "num_rounds": 1, "optimizer": short.to_dict()}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    command = ["app_cdm", "train", "--images", str(tmp_path / "study/images"), "--tags", str(tmp_path / "study/slices.csv")]
    command += ["--settings", str(tmp_path / "settings.json"), "--stages", "classifier", "diffusion", "cldf", "student"]
    launch(*TORCHRUN, *command, "--output", str(tmp_path / "two"))
    assert main([*command[1:], "--output", str(tmp_path / "one")]) == 0
    one, two = (CDMPipeline.from_pretrained(tmp_path / name / "model") for name in ("one", "two"))
    assert two.methods == one.methods
    assert isinstance(two.student, StudentNetwork)
    for name in ("unet", "condition_embedding", "classifier", "pixel_decoder", "student"):
        found = getattr(two, name).state_dict()
        for key, value in getattr(one, name).state_dict().items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=TOLERANCE, msg=lambda text, key=f"{name}.{key}": f"{key}: {text}")
    assert one.config.training["run_id"] == two.config.training["run_id"]

"""A whole training run on synthetic volumes: it learns from tags, records itself, and survives a kill."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from app_cdm.data.dataset import load_tagged_slices
from app_cdm.data.tags import TagTable, read_tags
from app_cdm.metrics.ranking import tag_auc
from app_cdm.pipeline import CDMPipeline
from app_cdm.segmentation.gate import slice_logits
from app_cdm.training.checkpoint import CheckpointError
from app_cdm.training.run import TaggedFolder, train
from tests.preloaded import Preloaded
from tests.training.synthetic import tiny_settings, write_blob_study

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_blob_study(folder)
    return folder


def tagged(study: Path) -> TaggedFolder:
    return TaggedFolder(study / "images", read_tags(study / "slices.csv"))


def weights(model: Path) -> dict[str, torch.Tensor]:
    pipeline = CDMPipeline.from_pretrained(model)
    modules = {"unet": pipeline.unet, "condition": pipeline.condition_embedding, "classifier": pipeline.classifier}
    return {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}


def test_classifier_learns_the_target_from_tags_and_the_run_records_itself(study: Path, tmp_path: Path) -> None:
    settings = tiny_settings(4)
    settings = settings.replace(classifier=settings.classifier.replace(num_steps=100, batch_size=16, ema_decay=0.9), clean_probability=0.8)
    model = train([tagged(study)], settings, tmp_path / "run", progress=False)
    assert model == tmp_path / "run" / "model"
    pipeline = CDMPipeline.from_pretrained(model)
    assert pipeline.class_names == ("blob",)
    assert pipeline.description.preprocess == settings.preprocess
    write_blob_study(tmp_path / "unseen", count=6, seed=99)
    unseen = tagged(tmp_path / "unseen")
    data = load_tagged_slices(unseen.paths, unseen.tags, settings.preprocess)
    scores = slice_logits(pipeline.classifier, data.slices)[:, 0]
    assert tag_auc(scores.tolist(), (data.states[:, 0] == 1).tolist()) > 0.95
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["settings"] == settings.to_dict()
    assert record["seed"] == 3
    assert record["num_images"] == 8
    assert record["num_slices"] == 64
    present = sum(last - first + 1 for tags in tagged(study).tags.tags.values() for first, last in tags["blob"] or ())  # type: ignore[misc]
    assert record["num_present_slices"] == {"blob": present}
    assert set(record["versions"]) == {"torch", "diffusers", "monai", "numpy"}
    recorded = json.loads(json.dumps(dict(pipeline.config.training)))
    assert recorded.pop("sign")["chosen"] == pipeline.settings_for("cdm_saliency").saliency.sign
    assert recorded == record
    assert str(tmp_path) not in json.dumps(record)
    assert not list(tmp_path.rglob("*.bin"))


def test_run_id_follows_settings_and_tags_but_not_the_number_of_steps(study: Path, tmp_path: Path) -> None:
    settings = tiny_settings(2)
    train([tagged(study)], settings, tmp_path, progress=False)
    first = json.loads((tmp_path / "run.json").read_text())
    longer = settings.replace(diffusion=settings.diffusion.replace(num_steps=3), num_threads=torch.get_num_threads())
    train([tagged(study)], longer, tmp_path, progress=False)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["run_id"] == first["run_id"]
    assert record["settings"]["diffusion"]["num_steps"] == 3
    same = tagged(study)
    fewer_tags = TaggedFolder(study / "images", same.tags.subset(list(same.tags.tags)[1:]))
    turned = {image: {"blob": ((0, 0),)} if image == "case_0" else tags for image, tags in same.tags.tags.items()}
    other_tags = TaggedFolder(study / "images", TagTable(("blob",), turned, same.tags.patients))
    for folder, changed in ((same, settings.replace(seed=4)), (fewer_tags, settings), (other_tags, settings)):
        with pytest.raises(CheckpointError, match="other settings or tags"):
            train([folder], changed, tmp_path, progress=False)
        assert json.loads((tmp_path / "run.json").read_text()) == record  # what is there stays described


def test_same_seed_same_weights_and_another_seed_others(study: Path, tmp_path: Path) -> None:
    settings = tiny_settings(3)
    first = weights(train([tagged(study)], settings, tmp_path / "a", progress=False))
    again = weights(train([tagged(study)], settings, tmp_path / "b", progress=False))
    other = weights(train([tagged(study)], settings.replace(seed=8), tmp_path / "c", progress=False))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_several_folders_are_one_set_of_images_with_one_set_of_classes(study: Path, tmp_path: Path) -> None:
    write_blob_study(tmp_path / "second", count=2, seed=5)
    train([tagged(study), tagged(tmp_path / "second")], tiny_settings(2), tmp_path / "run", progress=False)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["num_images"] == 10
    other = TaggedFolder(study / "images", TagTable(("lump",), {"case_0": {"lump": ((0, 3),)}}, {"case_0": "case_0"}))
    with pytest.raises(ValueError, match="name different classes"):
        train([tagged(study), other], tiny_settings(2), tmp_path / "other", progress=False)


def test_fine_tuning_starts_from_the_given_model(study: Path, tmp_path: Path) -> None:
    initial = train([tagged(study)], tiny_settings(3), tmp_path / "initial", progress=False)
    still = tiny_settings(1)  # the first step of a warm-up has learning rate 0
    tuned = train([tagged(study)], still, tmp_path / "tuned", progress=False, initial_model=initial)
    before, after = weights(initial), weights(tuned)
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor)
    record = json.loads((tmp_path / "tuned" / "run.json").read_text())
    assert record["parent"]["model_version"] == CDMPipeline.from_pretrained(initial).model_version
    with pytest.raises(CheckpointError):
        train([tagged(study)], still, tmp_path / "tuned", progress=False)  # without it, another run
    other = TagTable(("lump",), {i: {"lump": t["blob"]} for i, t in tagged(study).tags.tags.items()}, {})
    with pytest.raises(ValueError, match=r"knows classes \['blob'\], the tags \['lump'\]"):
        train([TaggedFolder(study / "images", other)], still, tmp_path / "lump", progress=False, initial_model=initial)
    wider = still.replace(network=still.network.replace(block_out_channels=(16, 64)))
    with pytest.raises(ValueError, match="another network size"):
        train([tagged(study)], wider, tmp_path / "wide", progress=False, initial_model=initial)


def test_killed_process_continues_and_ends_as_if_nothing_had_happened(study: Path, tmp_path: Path) -> None:
    def start(output: Path) -> Preloaded:
        return Preloaded("tests.training.train_process", [str(study), str(output), "25"], ROOT, os.environ, tmp_path / "log")

    undisturbed = start(tmp_path / "whole")
    victim = start(tmp_path / "killed")
    checkpoint, deadline = tmp_path / "killed" / "classifier.checkpoint.safetensors", time.monotonic() + 240
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    assert checkpoint.exists()
    assert not (tmp_path / "killed" / "model").exists()
    assert start(tmp_path / "killed").wait() == 0
    assert undisturbed.wait() == 0
    whole, continued = weights(tmp_path / "whole" / "model"), weights(tmp_path / "killed" / "model")
    assert all(torch.equal(whole[name], continued[name]) for name in whole)

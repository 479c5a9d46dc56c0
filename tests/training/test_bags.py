"""Volumes that hold the target somewhere teach where, and slices are tagged as far as that is sure."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from app_cdm.data.augmentation import AugmentationSettings
from app_cdm.data.dataset import BalancedSampler, TaggedSlices, load_tagged_slices
from app_cdm.data.tags import ABSENT, PRESENT, UNKNOWN, TagError, read_tags
from app_cdm.metrics.ranking import tag_auc
from app_cdm.networks.presets import build_classifier, build_scheduler
from app_cdm.pipeline import CDMPipeline
from app_cdm.segmentation.gate import slice_logits
from app_cdm.training.bags import SLICES_PER_BAG, bag_loss, settle_bags
from app_cdm.training.loop import TrainingLoop
from app_cdm.training.optimization import OptimizerSettings
from app_cdm.training.run import TaggedFolder, train
from app_cdm.training.tasks import ClassifierTask
from tests.training.synthetic import NETWORK, tiny_settings, write_blob_study

NUM_VOLUMES, NUM_SLICES = 12, 8


def bags(seed: int = 0) -> tuple[TaggedSlices, np.ndarray]:
    """Even volumes hold a blob on two of eight slices and say so of the volume alone; odd ones hold none."""
    generator = torch.Generator().manual_seed(seed)
    slices = torch.rand(NUM_VOLUMES * NUM_SLICES, 1, 16, 16, generator=generator) * 0.4 - 0.8
    volumes = torch.arange(NUM_VOLUMES).repeat_interleave(NUM_SLICES)
    holds = np.zeros(len(slices), dtype=bool)
    for volume in range(0, NUM_VOLUMES, 2):
        first = volume * NUM_SLICES + int(torch.randint(0, NUM_SLICES - 1, (1,), generator=generator))
        holds[first : first + 2] = True
    slices[torch.from_numpy(holds), :, 4:9, 5:10] = 0.9
    states = torch.where(volumes % 2 == 0, UNKNOWN, ABSENT).to(torch.int8)[:, None]
    positions = torch.linspace(0, 1, NUM_SLICES).repeat(NUM_VOLUMES)
    held = torch.tensor([[volume, 0] for volume in range(0, NUM_VOLUMES, 2)])
    return TaggedSlices(slices, states, positions, volumes, tuple(map(str, range(NUM_VOLUMES))), ("blob",), held), holds


def test_classifier_finds_the_slices_of_volumes_that_hold_the_target_somewhere(tmp_path: Path) -> None:
    data, holds = bags()
    settings = tiny_settings(1, clean_probability=1.0)
    torch.manual_seed(0)
    classifier = build_classifier(NETWORK, 1)
    optimizer = OptimizerSettings(num_steps=150, batch_size=8, num_warmup_steps=5, learning_rate=3e-3, ema_decay=0.9)
    TrainingLoop(ClassifierTask(classifier, build_scheduler(), data, settings), optimizer, tmp_path, "run", 0, torch.device("cpu")).run(
        False
    )
    unseen, unseen_holds = bags(seed=1)
    scores = slice_logits(classifier, unseen.slices)[:, 0].numpy()
    inside = unseen.states[:, 0].numpy() == UNKNOWN
    assert tag_auc(scores[inside].tolist(), unseen_holds[inside].tolist()) > 0.95
    settled = settle_bags(data, classifier)
    assert not len(settled.bags)
    states = settled.states[:, 0].numpy()
    assert set(states[~np.repeat(np.arange(NUM_VOLUMES) % 2 == 0, NUM_SLICES)]) == {ABSENT}
    assert (states[holds] != ABSENT).mean() > 0.9
    assert (states[(data.states[:, 0].numpy() == UNKNOWN) & ~holds] != PRESENT).mean() > 0.9


def test_every_bag_gets_at_least_one_present_slice_from_an_untrained_classifier() -> None:
    data, _ = bags()
    settled = settle_bags(data, build_classifier(NETWORK, 1))
    for volume, _ in data.bags.tolist():
        assert (settled.states[data.volume_index == volume, 0] == PRESENT).any()
    assert torch.equal(data.states, bags()[0].states), "the given tags must stay as they are"


def test_data_without_bags_is_returned_as_it_is() -> None:
    data = dataclasses.replace(bags()[0], bags=torch.zeros(0, 2, dtype=torch.long))
    assert settle_bags(data, build_classifier(NETWORK, 1)) is data


def test_bag_loss_is_the_softplus_of_the_pooled_log_odds() -> None:
    data, _ = bags()
    one = dataclasses.replace(data, bags=data.bags[:1])
    classifier = build_classifier(NETWORK, 1).eval()
    still = AugmentationSettings(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    found = float(bag_loss(classifier, one, still, 3.0, torch.Generator().manual_seed(0)).detach())
    assert NUM_SLICES <= SLICES_PER_BAG
    with torch.no_grad():
        logits = classifier(data.slices[data.volume_index == 0], torch.zeros(NUM_SLICES, dtype=torch.long))[:, 0].double().numpy()
    pooled = np.log(np.mean(np.exp(3.0 * logits))) / 3.0
    assert found == pytest.approx(np.log1p(np.exp(-pooled)), rel=1e-3)


def test_sampler_draws_absent_slices_alone_where_only_bags_are_present() -> None:
    data, _ = bags()
    drawn = BalancedSampler(data, torch.Generator().manual_seed(0)).draw(50)
    assert (data.states[drawn, 0] == ABSENT).all()
    with pytest.raises(TagError, match="no slice is tagged present"):
        BalancedSampler(dataclasses.replace(data, bags=data.bags[:0]), torch.Generator())


def test_present_somewhere_in_a_table_is_trained_from(tmp_path: Path) -> None:
    study = tmp_path / "study"
    write_blob_study(study, count=4)
    table = tmp_path / "tags.csv"
    table.write_text("image,class,tag\n" + "".join(f"case_{n},blob,{'present' if n % 2 else '2-4'}\n" for n in range(4)))
    folder = TaggedFolder(study / "images", read_tags(table), "{image}.nii.gz")
    data = load_tagged_slices(folder.paths, folder.tags, tiny_settings().preprocess)
    assert data.bags.tolist() == [[1, 0], [3, 0]]
    model = train([folder], tiny_settings(4), tmp_path / "run", progress=False)
    assert CDMPipeline.from_pretrained(model).class_names == ("blob",)

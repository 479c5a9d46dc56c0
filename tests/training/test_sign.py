"""Whether the target is bright or dark, from tags: real tiny networks, trained on blobs of either kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from app_cdm.config import SaliencySettings
from app_cdm.data.dataset import TaggedSlices
from app_cdm.networks.presets import build_classifier, build_condition_embedding, build_scheduler, build_unet
from app_cdm.saliency.base import SaliencyModel
from app_cdm.training.loop import TrainingLoop
from app_cdm.training.sign import MIN_SLICES, choose_sign, rests_on_few
from app_cdm.training.tasks import ClassifierTask, ConditionalDenoiser, DiffusionTask
from tests.training.synthetic import NETWORK, blob_slices, tiny_settings

CPU = torch.device("cpu")
SETTINGS = SaliencySettings(noise_levels=(0.5,), num_draws=1)


def slices_with(value: float) -> TaggedSlices:
    """A grey body; every other slice has a square of another value at a random place."""
    generator = torch.Generator().manual_seed(0)
    data = blob_slices(48)
    slices = torch.full_like(data.slices, -0.1) + 0.05 * torch.randn(data.slices.shape, generator=generator)
    for number in torch.nonzero(data.states[:, 0] == 1)[:, 0].tolist():
        row, column = torch.randint(1, 10, (2,), generator=generator).tolist()
        slices[number, 0, row : row + 5, column : column + 5] = value
    return replace(data, slices=slices, states=data.states[:, :1], class_names=("blob",))


def trained(data: TaggedSlices, folder: Path, steps: int) -> SaliencyModel:
    torch.manual_seed(1)
    settings = tiny_settings(steps)
    optimizer = settings.classifier.replace(batch_size=16, learning_rate=3e-3, ema_decay=0.9, mixed_precision=False)
    scheduler, classifier = build_scheduler(), build_classifier(NETWORK, 1)
    denoiser = ConditionalDenoiser(build_unet(NETWORK), build_condition_embedding(NETWORK, 1))
    for task in (ClassifierTask(classifier, scheduler, data, settings), DiffusionTask(denoiser, scheduler, data, settings)):
        TrainingLoop(task, optimizer, folder, "run", 0, CPU).run(progress=False)
    return SaliencyModel(denoiser.unet, denoiser.condition_embedding, classifier, scheduler, NETWORK.patch_size)


@pytest.fixture(scope="module", params=[(0.9, "positive"), (-0.8, "negative")], ids=["bright", "dark"])
def learned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[TaggedSlices, SaliencyModel, str]:
    """Slices with targets of one kind, a model of them, and the sign that it should find."""
    value, sign = request.param
    data = slices_with(value)
    return data, trained(data, tmp_path_factory.mktemp("sign"), 80), sign


def test_sign_of_the_target_is_found(learned: tuple[TaggedSlices, SaliencyModel, str]) -> None:
    data, model, sign = learned
    found, record = choose_sign(model, data, SETTINGS)
    assert found == sign
    assert (record["share_of_slices_with_a_darker_target"]["blob"] > 0.5) == (sign == "negative")
    assert choose_sign(model, data, SETTINGS) == (found, record), "deterministic"


def test_with_few_present_slices_the_sign_stays_and_is_asked_for_again(learned: tuple[TaggedSlices, SaliencyModel, str]) -> None:
    """The mean of a few values is below zero half of the time, and of one alone nothing says how much they differ."""
    data, model, sign = learned
    present = torch.nonzero(data.states[:, 0] == 1)[:, 0]
    for count in (0, 1, MIN_SLICES - 1, MIN_SLICES):
        states = torch.zeros_like(data.states)
        states[present[:count]] = 1
        found, record = choose_sign(model, replace(data, states=states), SETTINGS)
        assert (found, record["num_slices"]) == (sign if count == MIN_SLICES else "positive", count)
        assert rests_on_few({"sign": record}) == (count < MIN_SLICES)
    assert not rests_on_few({}), "a model that says nothing of it keeps its sign"

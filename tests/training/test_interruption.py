"""The stages after the diffusion model, killed after every piece of work: none is done twice, and they end as if nothing had happened."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from app_cdm.cldf import cache
from app_cdm.cldf import train as cldf_train
from app_cdm.cldf.features import FeatureSettings
from app_cdm.cldf.seeds import SeedSettings
from app_cdm.cldf.settings import CLDFSettings
from app_cdm.config import PreprocessSettings
from app_cdm.data.dataset import TaggedSlices
from app_cdm.pipeline import CDMPipeline, ModelDescription
from app_cdm.student.settings import StudentSettings
from app_cdm.training.later import train_later_stages
from app_cdm.training.loop import Progress, TrainingLoop, Watch
from app_cdm.training.optimization import OptimizerSettings
from app_cdm.training.stage import RunPlan
from tests.tiny_networks import tiny_saliency_model
from tests.training.synthetic import blob_slices, tiny_settings

SHORT = OptimizerSettings(num_steps=3, batch_size=6, num_warmup_steps=1, learning_rate=3e-3, ema_decay=0.9, mixed_precision=False)
LOOSE = SeedSettings(cam_foreground=0.2, gradient_foreground=0.2, saliency_foreground=0.9)
ROUNDS = {"cldf": 2 + 2, "student": 2}  # of either method; the decoder has one more after each of the student's


class Killed(BaseException):
    """Ends a training as a signal does: nothing catches it."""


class Work:
    """Counts pieces of work, and ends the process that begins one too many."""

    def __init__(self) -> None:
        self.done, self.left = Counter[str](), 0.0

    def counted(self, name: str, function: Callable[..., Any], is_work: Callable[..., bool] = lambda *_: True) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if not is_work(*arguments):
                return function(*arguments, **named)
            if self.left < 1:
                raise Killed
            self.left -= 1
            self.done[name] += 1
            return function(*arguments, **named)

        return call


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    work = Work()
    monkeypatch.setattr(cldf_train, "collect_votes", work.counted("votes", cldf_train.collect_votes))
    monkeypatch.setattr(cldf_train, "teach", work.counted("teacher", cldf_train.teach))
    monkeypatch.setattr(cldf_train, "fit_prototypes", work.counted("prototypes", cldf_train.fit_prototypes))
    features = work.counted("features", cache.extract_features, lambda _model, inputs, _settings: len(inputs.slice_indices) > 1)
    monkeypatch.setattr(cache, "extract_features", features)  # of one slice: only their size is asked for
    loop = work.counted("loops", TrainingLoop.run, lambda loop, *_: loop.step < loop.settings.num_steps)
    monkeypatch.setattr(TrainingLoop, "run", loop)
    return work


def slices_of_six_volumes() -> TaggedSlices:
    data = blob_slices(48)
    return dataclasses.replace(data, volume_index=torch.arange(48) // 8, image_ids=tuple(f"case_{number}" for number in range(6)))


def train_in(folder: Path, reported: dict[str, tuple[int, float]]) -> dict[str, torch.Tensor]:
    """Weights of decoder and student; networks and slices are made anew, as in another process."""
    model, data = tiny_saliency_model(), slices_of_six_volumes()
    description = ModelDescription(data.class_names, 2, PreprocessSettings(image_size=16))
    pipeline = CDMPipeline(model.unet, model.condition_embedding, model.classifier, model.scheduler, description.to_dict())
    settings = dataclasses.replace(
        tiny_settings(),
        cldf=CLDFSettings(
            FeatureSettings((0.2, 0.4), (), (0, 1)), LOOSE, ignored_band=0.05, hidden_channels=16, embedding_dim=4, optimizer=SHORT
        ),
        student=StudentSettings(channels=(8, 16), optimizer=SHORT),
    )

    def report(progress: Progress) -> None:
        reported[progress.name] = progress.step, progress.share

    watches = dict.fromkeys(("cldf", "student"), Watch(report=report))
    plan = RunPlan(settings, folder, torch.device("cpu"), False, ("cldf", "student"), watches)
    trained = train_later_stages(pipeline, data, plan)
    assert trained.pixel_decoder is not None and trained.student is not None
    networks = {"decoder": trained.pixel_decoder, "student": trained.student}
    return {f"{name}.{key}": value for name, network in networks.items() for key, value in network.state_dict().items()}


def test_killed_after_every_piece_of_work_and_none_is_done_twice(work: Work, tmp_path: Path) -> None:
    work.left, reported = float("inf"), dict[str, tuple[int, float]]()
    expected = train_in(tmp_path / "whole", reported)
    pieces = Counter(work.done)
    # In blocks of sixteen: 24 slices are tagged present of one class, four a volume, and 16 of the other.
    assert pieces["votes"] == 2 + 1
    assert pieces["features"] == 3 + 2
    assert pieces["teacher"] == (2 + 1) * (ROUNDS["cldf"] - 1 + ROUNDS["student"])
    assert pieces["loops"] == sum(ROUNDS.values())
    assert pieces["prototypes"] == ROUNDS["cldf"]

    work.done.clear()
    starts, again = 0, dict[str, torch.Tensor]()
    while not again:
        starts, work.left, heard = starts + 1, 1, dict[str, tuple[int, float]]()
        try:
            again = train_in(tmp_path / "killed", heard)
        except Killed:
            assert starts < pieces.total(), f"pieces are done again: {work.done - pieces}"
    assert work.done == pieces
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[name], value) for name, value in expected.items())
    assert heard == reported, "the last start tells how far all rounds are, also those that it found finished"
    assert not list((tmp_path / "killed").rglob("features_*"))

    work.left = 0  # killed before the model was published: all is there, the features excepted, and nobody needs them
    final = train_in(tmp_path / "killed", heard)
    assert all(torch.equal(final[name], value) for name, value in expected.items())
    assert not list((tmp_path / "killed").rglob("features_*"))

"""Retraining: who is held out, what is missing, and which model is better."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app_cdm.cldf.features import FeatureSettings
from app_cdm.cldf.settings import CLDFSettings
from app_cdm.config import SettingsError
from app_cdm.data.slices import cut_slices
from app_cdm.data.tags import TagTable, read_tags
from app_cdm.data.volume import read_volume
from app_cdm.metrics.ranking import tag_auc
from app_cdm.networks.presets import PRESETS
from app_cdm.pipeline import CDMPipeline
from app_cdm.segmentation.gate import slice_logits, slice_scores
from app_cdm.student.settings import StudentSettings
from app_cdm.training.held_out import (
    TooFewTagsError,
    gate_criterion,
    held_out_scores,
    load_held_out,
    missing_tags,
    split_patients,
    with_mean,
)
from app_cdm.training.optimization import OptimizerSettings
from app_cdm.training.retrain import Candidate, RetrainSettings, _cut_for, retrain
from app_cdm.training.settings import TrainSettings
from tests.training.synthetic import tiny_settings, write_blob_study

SHORT = OptimizerSettings(num_steps=20, batch_size=8, num_warmup_steps=2, learning_rate=3e-3, ema_decay=0.9, mixed_precision=False)


def table(count: int, every: int = 2, somewhere: bool = False) -> TagTable:
    """`count` patients of two images each; every `every`-th patient holds the class."""
    value = True if somewhere else ((1, 2),)
    tags = {f"p{n}_{k}": {"tumor": value if n % every == 0 else False} for n in range(count) for k in range(2)}
    return TagTable(("tumor",), tags, {image: image.split("_")[0] for image in tags})


@given(st.integers(4, 40), st.floats(0.05, 0.6))
def test_patients_are_split_whole_and_both_parts_hold_the_class(count: int, share: float) -> None:
    tags = table(count)
    learned, judged = split_patients(tags, share)
    assert set(learned.tags) | set(judged.tags) == set(tags.tags)
    assert not {learned.patients[i] for i in learned.tags} & {judged.patients[i] for i in judged.tags}
    for part in (learned, judged):
        assert any(by_class["tumor"] for by_class in part.tags.values())


@st.composite
def tag_tables(draw: st.DrawFn) -> TagTable:
    """Few patients with one to three classes and tags of every kind; an image has four slices."""
    names = tuple("abc"[: draw(st.integers(1, 3))])
    value = st.sampled_from([True, False, None, ((1, 2),), ((0, 3),), ((0, 1), (2, 3))])
    ids = draw(st.lists(st.integers(0, 10**6), min_size=4, max_size=9, unique=True))
    tags = {f"p{number}": {name: draw(value) for name in names} for number in ids}
    return TagTable(names, tags, {image: image for image in tags}, dict.fromkeys(tags, 4))


@given(tag_tables(), st.floats(0.05, 0.6))
def test_both_parts_hold_both_states_of_every_class_or_the_split_is_refused(tags: TagTable, share: float) -> None:
    try:
        parts = split_patients(tags, share)
    except TooFewTagsError:
        patients = sorted(set(tags.patients.values()))
        chosen = (set(part) for size in range(len(patients) + 1) for part in itertools.combinations(patients, size))
        assert not any(is_whole(tags, one) and is_whole(tags, set(patients) - one) for one in chosen)
        return
    assert all(is_whole(tags, set(part.tags)) for part in parts)


def is_whole(tags: TagTable, images: set[str]) -> bool:
    """Whether every class is present, and absent on some slice."""
    values = [[tags.tags[image][name] for image in images] for name in tags.class_names]
    return all(any(found) and any(value in (False, ((1, 2),)) and value is not None for value in found) for found in values)


def test_a_range_over_every_slice_leaves_none_absent() -> None:
    pictures = {f"p{number}": {"tumor": ((0, 0),)} for number in range(6)}
    patients = {image: image for image in pictures}
    assert missing_tags(TagTable(("tumor",), pictures, patients, dict.fromkeys(pictures, 2))) == []
    (said,) = missing_tags(TagTable(("tumor",), pictures, patients, dict.fromkeys(pictures, 1)))
    assert "2 more patient(s) tagged absent" in said


def test_whoever_is_held_out_stays_so_when_patients_are_added() -> None:
    _, small = split_patients(table(30), 0.3)
    _, large = split_patients(table(60), 0.3)
    assert set(small.tags) <= set(large.tags)


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        (table(2), "tag images of 2 more patient"),
        (table(6, every=6), "class 'tumor': 1 more patient(s) tagged present"),
        (table(6, every=1, somewhere=True), "class 'tumor': 2 more patient(s) tagged absent, or present on a slice range"),
    ],
)
def test_what_is_missing_is_said_by_class(tags: TagTable, said: str) -> None:
    assert any(said in line for line in missing_tags(tags))
    with pytest.raises(TooFewTagsError, match="too few tags"):
        split_patients(tags, 0.2)


def test_nothing_is_missing_from_enough_tags() -> None:
    assert missing_tags(table(4)) == []
    assert missing_tags(table(4, every=1)) == [], "slice ranges hold absent slices too"


@pytest.mark.parametrize("stages", [(), ("diffusion", "classifier"), ("segmentation",), ("student", "student")])
def test_stages_must_be_known_and_in_order(stages: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError, match=r"RetrainSettings\.stages"):
        RetrainSettings(stages=stages)


def settings() -> TrainSettings:
    return dataclasses.replace(
        tiny_settings(steps=40),
        cldf=CLDFSettings(FeatureSettings((0.2,), (), (0, 1)), num_rounds=1, hidden_channels=16, embedding_dim=4, optimizer=SHORT),
        student=StudentSettings(channels=(8, 16), num_rounds=1, optimizer=SHORT),
    )


@pytest.fixture(scope="module")
def candidate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Candidate, Path, TagTable, dict[str, Path], list[str]]:
    study = tmp_path_factory.mktemp("study")
    tags = read_tags(write_blob_study(study, count=10), {"tumor": "has_blob"})
    paths = {image: study / "images" / f"{image}.nii.gz" for image in tags.tags}
    told: list[str] = []
    run_folder = tmp_path_factory.mktemp("run")
    found = retrain(
        paths,
        tags,
        RetrainSettings(start="scratch", minutes=0.0),
        settings(),
        run_folder,
        None,
        report=lambda progress, _: told.append(progress.name),
    )
    return found, run_folder, tags, paths, told


def test_candidate_is_complete_and_judged_on_patients_it_has_not_seen(
    candidate: tuple[Candidate, Path, TagTable, dict[str, Path], list[str]],
) -> None:
    found, _, tags, _, told = candidate
    pipeline = CDMPipeline.from_pretrained(found.folder)
    assert pipeline.methods == ("student", "cldf", "cdm_saliency")
    assert {"classifier", "diffusion", "cldf_0", "cldf_1", "student_0"} == set(told)
    assert found.scores_in_use is None
    assert not found.is_worse
    assert set(found.scores) == {"gate/tumor", "map/tumor", "mean"}
    learned, judged = split_patients(tags, RetrainSettings().held_out_share)
    assert pipeline.config.training["num_images"] == len(learned.tags)
    assert pipeline.config.training["num_held_out_images"] == len(judged.tags)


def test_gate_is_judged_as_it_works_smoothed_in_millimetres(
    candidate: tuple[Candidate, Path, TagTable, dict[str, Path], list[str]],
) -> None:
    found, _, tags, paths, _ = candidate
    pipeline = CDMPipeline.from_pretrained(found.folder)
    data = load_held_out(paths, split_patients(tags, RetrainSettings().held_out_share)[1], pipeline.description.preprocess)
    assert data.spacing_mm == (5.0,) * len(data.image_ids)
    mask = pipeline.settings_for("cdm_saliency").mask.replace(gate_smoothing_mm=6.0)
    smoothed = pipeline.with_settings(pipeline.settings_for("cdm_saliency").replace(mask=mask))
    scores = []
    for image in data.image_ids:
        stack = cut_slices(read_volume(paths[image]), pipeline.description.preprocess)
        scores += slice_scores(pipeline.gate_logits(stack)[:, 0], 5.0, 6.0).tolist()
    expected = tag_auc(scores, (data.states[:, 0] == 1).tolist())
    assert held_out_scores(smoothed, data)["gate/tumor"] == pytest.approx(expected)


def test_the_model_in_use_is_judged_on_slices_cut_as_it_has_learned_them(
    candidate: tuple[Candidate, Path, TagTable, dict[str, Path], list[str]],
) -> None:
    found, _, tags, paths, _ = candidate
    judged = split_patients(tags, RetrainSettings().held_out_share)[1]
    pipeline = CDMPipeline.from_pretrained(found.folder)
    given = load_held_out(paths, judged, settings().preprocess)
    assert _cut_for(pipeline, settings(), given, paths, judged) is given
    preprocess = settings().preprocess.replace(lower_percentile=20.0)
    other = pipeline.with_networks(dataclasses.replace(pipeline.description, preprocess=preprocess))
    cut = _cut_for(other, settings(), given, paths, judged)
    assert not torch.equal(cut.slices, given.slices)
    assert torch.equal(cut.slices, load_held_out(paths, judged, preprocess).slices)


def test_budget_in_minutes_ends_every_stage_and_fine_tuning_starts_from_the_model_in_use(
    candidate: tuple[Candidate, Path, TagTable, dict[str, Path], list[str]], tmp_path: Path
) -> None:
    found, _, tags, paths, _ = candidate
    again = retrain(paths, tags, RetrainSettings(minutes=0.1, patience=1000), settings(), tmp_path, found.folder)
    pipeline = CDMPipeline.from_pretrained(again.folder)
    assert pipeline.config.training["parent"]["model_version"] == CDMPipeline.from_pretrained(found.folder).model_version
    assert again.scores_in_use is not None
    assert again.scores_in_use["mean"] == pytest.approx(found.scores["mean"], abs=0.02)
    assert again.is_worse == (again.scores["mean"] < again.scores_in_use["mean"])


def test_budget_in_epochs_is_a_number_of_steps_whatever_the_machine(
    candidate: tuple[Candidate, Path, TagTable, dict[str, Path], list[str]], tmp_path: Path
) -> None:
    _, _, tags, paths, _ = candidate
    done: list[float] = []
    wanted = RetrainSettings(start="scratch", epochs=0.5)
    found = retrain(paths, tags, wanted, settings(), tmp_path, None, report=lambda _, share: done.append(share))
    record = CDMPipeline.from_pretrained(found.folder).config.training
    steps = round(0.5 * record["num_slices"] / settings().diffusion.batch_size)
    assert record["steps"]["diffusion"] == steps
    assert record["steps"]["classifier"] == min(steps, settings().classifier.num_steps)
    assert (record["minutes"], record["epochs"]) == (0.0, 0.5)
    assert done == sorted(done)
    assert done[-1] == 1.0


def test_epochs_end_the_other_stages_at_their_default_where_the_diffusion_model_is_trained() -> None:
    default = TrainSettings()
    long = default.for_epochs(1000, 3200, ("classifier", "diffusion", "cldf", "student"))
    assert long.diffusion.num_steps == 100_000
    assert (long.classifier, long.cldf, long.student) == (default.classifier, default.cldf, default.student)
    alone = default.for_epochs(1000, 3200, ("student",))
    assert alone.student.optimizer.num_steps == 100_000
    short = default.for_epochs(1, 3200, ("classifier", "diffusion"))
    assert (short.classifier.num_steps, short.classifier.num_warmup_steps) == (100, 10)


def test_one_stage_alone_leaves_the_others_as_they_are_whatever_the_preset_and_record(
    candidate: tuple[Candidate, Path, TagTable, dict[str, Path], list[str]], tmp_path: Path
) -> None:
    found, _, tags, paths, _ = candidate
    in_use = shutil.copytree(found.folder, tmp_path / "in_use")
    index = json.loads((in_use / "model_index.json").read_text())
    (in_use / "model_index.json").write_text(json.dumps(index | {"training": {}}))  # sizes are those of its networks
    wanted = dataclasses.replace(settings(), network=PRESETS["tiny"], preprocess=TrainSettings().preprocess)
    again = retrain(paths, tags, RetrainSettings(("student",), minutes=0.0), wanted, tmp_path / "run", in_use)
    before, after = CDMPipeline.from_pretrained(in_use), CDMPipeline.from_pretrained(again.folder)
    for name in ("unet", "classifier", "pixel_decoder"):
        for key, tensor in before.networks[name].state_dict().items():
            assert torch.equal(tensor, after.networks[name].state_dict()[key]), f"{name}.{key}"


def test_worse_is_a_lower_mean_of_what_both_are_judged_by(tmp_path: Path) -> None:
    def worse(own: dict[str, float], other: dict[str, float] | None) -> bool:
        return Candidate(tmp_path, with_mean(own), None if other is None else with_mean(other)).is_worse

    assert worse({"gate/a": 0.8}, {"gate/a": 0.9})
    assert not worse({"gate/a": 0.9}, {"gate/a": 0.9})
    assert not worse({"gate/a": 0.1}, None)
    # A map that the model in use has not neither raises nor lowers the candidate.
    assert not worse({"gate/a": 0.9, "map/a": 0.5}, {"gate/a": 0.8})
    assert worse({"gate/a": 0.7, "map/a": 1.0}, {"gate/a": 0.8})
    # Where nothing tells the two apart, what is in use stays.
    assert worse({}, {})
    assert worse({"map/a": 1.0}, {"gate/a": 0.5})
    assert Candidate(tmp_path, with_mean({"gate/a": 1.0}), {}).is_worse, "a model in use that knows other classes"


def test_a_volume_that_holds_the_class_somewhere_counts_with_its_highest_score(
    candidate: tuple[Candidate, Path, TagTable, dict[str, Path], list[str]],
) -> None:
    found, _, tags, paths, _ = candidate
    pipeline = CDMPipeline.from_pretrained(found.folder).with_networks(student=None)
    judged = split_patients(tags, RetrainSettings().held_out_share)[1]
    somewhere = next(iter(judged.tags))
    vague = dataclasses.replace(judged, tags={**judged.tags, somewhere: {"tumor": True}})
    data = load_held_out(paths, vague, pipeline.description.preprocess)
    assert data.bags.tolist() == [[0, 0]]
    logits = slice_logits(pipeline.classifier, data.slices).numpy()[:, 0]
    smoothing = pipeline.settings_for("cdm_saliency").mask.gate_smoothing_mm
    volumes = [slice_scores(logits[data.volume_index.numpy() == number], 5.0, smoothing) for number in range(len(data.image_ids))]
    scores = [float(volumes[0].max()), *np.concatenate(volumes[1:]).tolist()]
    is_present = [True, *(data.states[data.volume_index > 0, 0] == 1).tolist()]
    expected = pytest.approx(tag_auc(scores, is_present))
    assert held_out_scores(pipeline, data) == {"gate/tumor": expected, "mean": expected}
    of_logits = [float(logits[data.volume_index == 0].max()), *logits[data.volume_index > 0].tolist()]
    assert gate_criterion(data)(pipeline.classifier) == pytest.approx(tag_auc(of_logits, is_present))

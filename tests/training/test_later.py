"""Pixel decoder and student: trained from tags alone, resumed, and bound to the weights that they were made for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from app_cdm.cldf.features import FeatureSettings
from app_cdm.cldf.settings import CLDFSettings
from app_cdm.data.dataset import load_tagged_slices
from app_cdm.data.tags import TagTable, read_tags
from app_cdm.data.volume import read_volume
from app_cdm.metrics.ranking import tag_auc
from app_cdm.pipeline import CDMPipeline
from app_cdm.segmentation.gate import map_logits
from app_cdm.student.settings import StudentSettings
from app_cdm.training.held_out import held_out_scores
from app_cdm.training.optimization import OptimizerSettings
from app_cdm.training.run import TaggedFolder, settings_as_in, train
from app_cdm.training.settings import TrainSettings
from app_cdm.training.teacher import student_probabilities
from tests.training.synthetic import tiny_settings, write_blob_study

SHORT = OptimizerSettings(num_steps=30, batch_size=8, num_warmup_steps=2, learning_rate=3e-3, ema_decay=0.9, mixed_precision=False)
BRIEF = SHORT.replace(num_steps=4)  # where all that matters is that something was trained
ALL = ("classifier", "diffusion", "cldf", "student")


def settings() -> TrainSettings:
    return dataclasses.replace(
        tiny_settings(steps=60),
        cldf=CLDFSettings(FeatureSettings((0.2, 0.4), (), (0, 1)), hidden_channels=16, embedding_dim=4, num_anchors=64, optimizer=SHORT),
        student=StudentSettings(channels=(8, 16), num_rounds=2, optimizer=SHORT),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> TaggedFolder:
    study = tmp_path_factory.mktemp("study")
    table = write_blob_study(study)
    return TaggedFolder(study / "images", read_tags(table, {"tumor": "has_blob"}), "{image}.nii.gz")


@pytest.fixture(scope="module")
def run_folder(folder: TaggedFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    train([folder], settings(), run, progress=False, stages=ALL)
    return run


def test_all_stages_give_a_model_with_three_methods(run_folder: Path, folder: TaggedFolder) -> None:
    pipeline = CDMPipeline.from_pretrained(run_folder / "model")
    assert pipeline.methods == ("student", "cldf", "cdm_saliency")
    assert pipeline.config.training["stages"] == list(ALL)
    volume = read_volume(next(iter(folder.paths.values())))
    for method, evaluations in (("student", 0), ("cldf", 2)):
        default = pipeline.settings_for(method)
        result = pipeline.segment(volume, default.replace(mask=default.mask.replace(gate="off")))
        assert result.network_evaluations == evaluations * volume.array.shape[2]
        assert result.method == method
        assert result.mask.shape == volume.array.shape
        assert all(0 <= value <= 1 for value in result.slice_uncertainty["tumor"])
        assert 0 < np.mean(result.uncertainty["tumor"]) < 1


def test_features_are_removed_when_the_decoder_is_trained(run_folder: Path) -> None:
    assert not list(run_folder.rglob("features_*"))


def test_decoder_and_student_teach_each_other(run_folder: Path, folder: TaggedFolder, tmp_path: Path) -> None:
    rounds = settings().cldf.num_rounds + settings().student.num_rounds
    assert len(list(run_folder.rglob("cldf_*.checkpoint.safetensors"))) == rounds
    alone = train([folder], settings(), tmp_path, progress=False, initial_model=run_folder / "model", stages=("cldf",))
    assert len(list(tmp_path.rglob("cldf_*.checkpoint.safetensors"))) == settings().cldf.num_rounds
    together, by_itself = (CDMPipeline.from_pretrained(path).pixel_decoder for path in (run_folder / "model", alone))
    assert together is not None and by_itself is not None
    assert any(not torch.equal(tensor, by_itself.state_dict()[name]) for name, tensor in together.state_dict().items())


def test_finished_stages_are_not_run_again(run_folder: Path, folder: TaggedFolder) -> None:
    before = {path: path.stat().st_mtime_ns for path in run_folder.rglob("votes_*.safetensors")}
    version = CDMPipeline.from_pretrained(run_folder / "model").model_version
    train([folder], settings(), run_folder, progress=False, stages=ALL)
    assert before == {path: path.stat().st_mtime_ns for path in run_folder.rglob("votes_*.safetensors")}
    assert CDMPipeline.from_pretrained(run_folder / "model").model_version == version


def test_later_stages_alone_start_from_a_model_and_leave_it_as_it_is(run_folder: Path, folder: TaggedFolder, tmp_path: Path) -> None:
    initial = CDMPipeline.from_pretrained(run_folder / "model")
    with_decoder = train([folder], settings(), tmp_path / "cldf", progress=False, initial_model=run_folder / "model", stages=("cldf",))
    again = CDMPipeline.from_pretrained(with_decoder)
    assert again.methods == ("cldf", "cdm_saliency"), "a student of another decoder must not stay"
    for name in ("unet", "classifier", "condition_embedding"):
        for key, tensor in getattr(initial, name).state_dict().items():
            assert torch.equal(tensor, getattr(again, name).state_dict()[key])


def test_student_without_a_decoder_and_stages_without_a_model_are_refused(run_folder: Path, folder: TaggedFolder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="build on a trained model"):
        train([folder], settings(), tmp_path / "none", progress=False, stages=("student",))
    bare = tmp_path / "bare"
    CDMPipeline.from_pretrained(run_folder / "model").with_networks(pixel_decoder=None, student=None).save_pretrained(bare)
    with pytest.raises(ValueError, match="run the stage cldf too"):
        train([folder], settings(), tmp_path / "run", progress=False, initial_model=bare, stages=("student",))
    assert not list((tmp_path / "run").glob("votes_*")), "said before maps are made"


def test_maps_are_made_again_where_slices_are_cut_in_another_way(run_folder: Path, folder: TaggedFolder, tmp_path: Path) -> None:
    model, given = CDMPipeline.from_pretrained(run_folder / "model"), settings()
    for lower_percentile in (given.preprocess.lower_percentile, 20.0):
        preprocess = given.preprocess.replace(lower_percentile=lower_percentile)
        cut = model.with_networks(dataclasses.replace(model.description, preprocess=preprocess))
        cut.save_pretrained(tmp_path / "model")
        otherwise = dataclasses.replace(given, preprocess=preprocess)
        train([folder], otherwise, tmp_path / "run", progress=False, initial_model=tmp_path / "model", stages=("cldf",))
    assert len(list((tmp_path / "run").glob("votes_*"))) == 2


def test_networks_that_stay_are_not_shown_slices_cut_otherwise(run_folder: Path, folder: TaggedFolder, tmp_path: Path) -> None:
    given = settings()
    otherwise = dataclasses.replace(given, preprocess=given.preprocess.replace(lower_percentile=20.0))
    for stages in (("cldf",), ("classifier",)):
        with pytest.raises(ValueError, match=r"has learned from slices cut by .*lower_percentile=0\.5.*, not by .*lower_percentile=20\.0"):
            train([folder], otherwise, tmp_path / "run", progress=False, initial_model=run_folder / "model", stages=stages)
    model = CDMPipeline.from_pretrained(run_folder / "model")
    adopted = settings_as_in(model, TrainSettings())
    assert adopted.preprocess == given.preprocess and adopted.network.image_size == given.network.image_size


def test_new_diffusion_weights_drop_what_was_made_for_the_old(run_folder: Path, folder: TaggedFolder, tmp_path: Path) -> None:
    brief = settings().replace(classifier=BRIEF, diffusion=BRIEF)
    model = train([folder], brief, tmp_path, progress=False, initial_model=run_folder / "model", stages=("classifier", "diffusion"))
    assert CDMPipeline.from_pretrained(model).methods == ("cdm_saliency",)


def test_either_of_the_first_stages_is_trained_alone(run_folder: Path, folder: TaggedFolder, tmp_path: Path) -> None:
    before, brief = CDMPipeline.from_pretrained(run_folder / "model"), settings().replace(classifier=BRIEF, diffusion=BRIEF)
    kept = {"diffusion": ("classifier", "unet", ("cdm_saliency",)), "classifier": ("unet", "classifier", before.methods)}
    for stage, (other, network, methods) in kept.items():
        trained = train([folder], brief, tmp_path / stage, progress=False, initial_model=run_folder / "model", stages=(stage,))
        after = CDMPipeline.from_pretrained(trained)
        assert weights_of(after, other) == weights_of(before, other)
        assert weights_of(after, network) != weights_of(before, network)
        assert after.methods == methods


def weights_of(pipeline: CDMPipeline, network: str) -> list[list[float]]:
    return [tensor.flatten().tolist() for tensor in getattr(pipeline, network).state_dict().values()]


def test_exclusive_classes_are_found_in_the_tags_and_told_apart_from_empty_slices(tmp_path: Path) -> None:
    """Of every other case the blob is called large, of the rest small; nothing else tells the two apart."""
    table = read_tags(write_blob_study(tmp_path, count=14), {"tumor": "has_blob"})
    folder = TaggedFolder(tmp_path / "images", table, "{image}.nii.gz")
    by_image = {image: tags["tumor"] for image, tags in folder.tags.tags.items()}
    names = {image: ("large", "small")[number % 2] for number, image in enumerate(by_image)}
    tags = {image: {name: found if name == names[image] else False for name in ("large", "small")} for image, found in by_image.items()}
    short = settings().replace(classifier=SHORT, diffusion=SHORT)
    kinds = TaggedFolder.of_files(folder.paths, TagTable(("large", "small"), tags, folder.tags.patients))
    pipeline = CDMPipeline.from_pretrained(train([kinds], short, tmp_path / "kinds", progress=False, stages=ALL))
    assert pipeline.description.exclusive_classes
    assert pipeline.saliency_model().exclusive_classes
    volume = read_volume(next(iter(folder.paths.values())))
    result = pipeline.segment(volume)
    shown = np.array([result.saliency[name].max(axis=(0, 1)) > 0 for name in ("large", "small")])
    assert (shown.sum(axis=0) <= 1).all()

    data = load_tagged_slices(kinds.paths, kinds.tags, short.preprocess)
    student = pipeline.student
    assert student is not None
    scores = held_out_scores(pipeline, data)
    for index, name in enumerate(data.class_names):
        beside = (data.states[:, index] == 1) | (data.states == 0).all(dim=1)
        maps = student_probabilities(student, data, torch.nonzero(beside)[:, 0], index).numpy()
        expected = tag_auc(map_logits(maps).tolist(), (data.states[beside, index] == 1).tolist())
        assert scores[f"map/{name}"] == pytest.approx(expected)
    # A model that takes the classes for such is compared with one that does not on the same slices.
    other = pipeline.with_networks(description=dataclasses.replace(pipeline.description, exclusive_classes=False))
    of_maps = [f"map/{name}" for name in data.class_names]
    as_judged = held_out_scores(other, data, exclusive_classes=True)
    assert [as_judged[key] for key in of_maps] == [scores[key] for key in of_maps]
    assert [held_out_scores(other, data)[key] for key in of_maps] != [scores[key] for key in of_maps]

    few = dict(list(tags.items())[:3])
    further = TaggedFolder.of_files({image: folder.paths[image] for image in few}, TagTable(("large", "small"), few, folder.tags.patients))
    assert not load_tagged_slices(further.paths, further.tags, short.preprocess).has_exclusive_classes  # too few to tell
    brief = settings().replace(classifier=BRIEF, student=StudentSettings(channels=(8, 16), num_rounds=1, optimizer=BRIEF))
    tuned = train([further], brief, tmp_path / "tuned", progress=False, initial_model=tmp_path / "kinds" / "model", stages=("classifier",))
    assert CDMPipeline.from_pretrained(tuned).description.exclusive_classes
    image = next(iter(few))
    few[image] = dict.fromkeys(("large", "small"), by_image[image])
    met = TaggedFolder.of_files(further.paths, TagTable(("large", "small"), few, folder.tags.patients))
    for stages in (("classifier",), ("student",)):
        tuned = train([met], brief, tmp_path / stages[0], progress=False, initial_model=tmp_path / "kinds" / "model", stages=stages)
        assert not CDMPipeline.from_pretrained(tuned).description.exclusive_classes

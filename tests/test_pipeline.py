"""The pipeline: folders in and out, masks on the source grid, and every promise of `segment`."""

from __future__ import annotations

import concurrent.futures
import copy
import dataclasses
import json
import pickle
import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from app_cdm.config import MaskSettings, Method, PreprocessSettings, SaliencyMode, SaliencySettings, SegmentationSettings, SettingsError
from app_cdm.data.slices import cut_slices
from app_cdm.data.volume import Volume, VolumeError
from app_cdm.networks.student import StudentNetwork
from app_cdm.pipeline import CDMPipeline, ModelDescription, Segmentation
from app_cdm.saliency.batches import BatchLimit
from app_cdm.segmentation.maps import StudentMaps
from app_cdm.segmentation.mask import LEAST_PEAK
from tests.saliency.counting import batch_sizes, out_of_memory_above
from tests.tagged_slices import tiny_decoder
from tests.tiny_networks import TINY, tiny_saliency_model

CLASSES = ("edema", "tumor")
FAST = SegmentationSettings(
    saliency=SaliencySettings(noise_levels=(0.6,), num_draws=1, flip=False, smoothing_px=1.0), mask=MaskSettings(gate="off")
)
SHAPE = (18, 22, 7)


def make_pipeline(seed: int = 0, class_names: tuple[str, ...] = CLASSES) -> CDMPipeline:
    model = tiny_saliency_model(num_classes=len(class_names), seed=seed)
    model.classifier.conv_out.weight.mul_(20)
    description = ModelDescription(class_names, TINY.patch_size, PreprocessSettings(image_size=TINY.image_size), FAST)
    return CDMPipeline(model.unet, model.condition_embedding, model.classifier, model.scheduler, description.to_dict(), {"seed": seed})


@pytest.fixture(scope="module")
def pipeline() -> CDMPipeline:
    return make_pipeline()


@pytest.fixture(scope="module")
def model_folder(pipeline: CDMPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    pipeline.save_pretrained(folder)
    return folder


def with_all_methods(pipeline: CDMPipeline) -> CDMPipeline:
    torch.manual_seed(0)
    return pipeline.with_networks(pixel_decoder=tiny_decoder(), student=StudentNetwork(len(CLASSES), 1, (8, 16), 1))


def make_volume(seed: int = 0, shape: tuple[int, int, int] = SHAPE, flips: tuple[int, int, int] = (-1, 1, 1)) -> Volume:
    generator = np.random.default_rng(seed)
    array = np.zeros(shape, dtype=np.float32)
    array[2:-2, 3:-2] = generator.random((shape[0] - 4, shape[1] - 5, shape[2])) * 100 + 50
    return Volume(array, np.diag([*np.multiply(flips, (1.0, 1.0, 5.0)), 1.0]))


def assert_equal(first: Segmentation, second: Segmentation) -> None:
    np.testing.assert_array_equal(first.mask, second.mask)
    assert first.slice_scores == second.slice_scores
    for name, saliency in first.saliency.items():
        np.testing.assert_array_equal(saliency, second.saliency[name])


def test_answer_lies_on_the_source_grid(pipeline: CDMPipeline) -> None:
    volume = make_volume()
    before = volume.array.copy()
    result = pipeline.segment(volume)
    assert result.mask.shape == SHAPE
    assert result.mask.dtype == np.uint8
    assert set(np.unique(result.mask)) == {0, 1, 2}
    assert set(result.saliency) == set(CLASSES)
    for saliency in result.saliency.values():
        assert saliency.shape == SHAPE
        assert saliency.dtype == np.float32
        assert 0 <= saliency.min() <= saliency.max() <= 1
        assert saliency.max() > 0.2
    assert (result.mask[volume.array == 0] == 0).mean() > 0.9
    assert result.slicing_axis == 2
    assert all(len(scores) == SHAPE[2] for scores in result.slice_scores.values())
    assert result.class_scores == {name: max(scores) for name, scores in result.slice_scores.items()}
    assert result.network_evaluations == 2 * 2 * SHAPE[2]
    assert set(result.timings) == {"read_slices", "wait", "gate", "saliency", "mask"}
    assert result.model_version == pipeline.model_version
    np.testing.assert_array_equal(volume.array, before)


def test_same_answer_again_and_for_a_file_that_stores_the_same_patient_otherwise(pipeline: CDMPipeline) -> None:
    volume = make_volume()
    first = pipeline(volume)
    assert_equal(first, pipeline.segment(volume, pipeline.default_settings))
    turned = Volume(np.ascontiguousarray(volume.array[::-1, :, ::-1].transpose(1, 2, 0)), np.eye(4))
    affine = np.zeros((4, 4))
    affine[1, 0], affine[2, 1], affine[0, 2], affine[3, 3] = 1.0, -5.0, 1.0, 1.0
    other = pipeline.segment(Volume(turned.array, affine))
    np.testing.assert_array_equal(other.mask.transpose(2, 0, 1)[::-1, :, ::-1], first.mask)
    assert other.slicing_axis == 1
    for name, scores in first.slice_scores.items():
        assert other.slice_scores[name] == scores[::-1]


@pytest.mark.parametrize("mode", get_args(SaliencyMode))
def test_every_mode_and_axis(pipeline: CDMPipeline, mode: str) -> None:
    saliency = FAST.saliency.replace(mode=mode, num_denoising_steps=2, cg_diff_num_steps=2)
    for axis in (-1, 0) if mode == "parallel" else (-1,):
        volume = make_volume(shape=(12, 14, 9))
        result = pipeline.segment(volume, FAST.replace(saliency=saliency, slicing_axis=axis))
        assert result.mask.shape == (12, 14, 9)
        assert result.slicing_axis == (2 if axis < 0 else axis)
        assert len(result.slice_scores["tumor"]) == (9 if axis < 0 else 12)
        assert result.mask.any()


def test_given_slices_take_the_place_of_the_gate_in_file_order(pipeline: CDMPipeline) -> None:
    closed = FAST.replace(mask=MaskSettings(gate_threshold=1.0))
    for flips in ((-1, 1, 1), (-1, 1, -1)):  # stacked up and down
        volume = make_volume(flips=flips)
        given = {"edema": [False] * 7, "tumor": [False, True, True, False, False, False, False]}
        result = pipeline.segment(volume, closed, positive_slices=given)
        assert result.mask.any(axis=(0, 1)).tolist() == given["tumor"]
        assert set(np.unique(result.mask)) == {0, 2}
        assert (result.saliency["tumor"].max(axis=(0, 1)) > 0).tolist() == given["tumor"]
        assert not result.saliency["edema"].any()
        assert result.network_evaluations == 2 * 2
        assert not pipeline.segment(volume, closed).mask.any()


def test_map_of_a_slice_does_not_depend_on_which_others_are_positive(pipeline: CDMPipeline) -> None:
    volume = make_volume(shape=(18, 22, 12))
    alone_each = FAST.replace(mask=FAST.mask.replace(saliency_smoothing_mm=0.0))
    everything = pipeline.segment(volume, alone_each, ["tumor"]).saliency["tumor"]
    for index in (0, 5, 11):
        given = {"tumor": [i == index for i in range(12)]}
        found = pipeline.segment(volume, alone_each, ["tumor"], positive_slices=given).saliency["tumor"]
        np.testing.assert_allclose(found[:, :, index], everything[:, :, index], atol=1e-4)


@pytest.mark.parametrize(
    ("method", "network", "refused"),
    [
        ("cdm_saliency", "unet", [16, 16, 16, 8]),
        ("cldf", "unet", [16, 16, 16, 8]),
        ("student", "student", [20, 20, 16, 8]),
        ("student", "classifier", [20, 20, 16, 8]),
    ],
)
def test_out_of_memory_makes_the_calls_of_a_request_smaller_and_leaves_its_answer(
    pipeline: CDMPipeline, method: Method, network: str, refused: list[int]
) -> None:
    pipeline, volume = with_all_methods(pipeline), make_volume(shape=(18, 22, 20))
    settings = FAST.replace(method=method)
    expected = pipeline.segment(volume, settings)
    module = pipeline.unet.conv_in if network == "unet" else getattr(pipeline, network)
    with out_of_memory_above(module, 4) as found, batch_sizes(module) as sizes:
        result = pipeline.segment(volume, settings)
    assert found == refused, "each size is tried once, then all calls are as small"
    assert max(sizes) == 4
    for name in CLASSES:
        np.testing.assert_allclose(result.slice_maps[name], expected.slice_maps[name], atol=1e-4)
        np.testing.assert_allclose(result.slice_scores[name], expected.slice_scores[name], atol=1e-4)
    with out_of_memory_above(module, 0), pytest.raises(torch.OutOfMemoryError):
        pipeline.segment(volume, settings)
    assert_equal(pipeline.segment(volume, settings), expected)


def test_features_of_a_slice_serve_all_classes(pipeline: CDMPipeline) -> None:
    pipeline = with_all_methods(pipeline)
    with batch_sizes(pipeline.unet.conv_in) as sizes:
        result = pipeline.segment(make_volume(), FAST.replace(method="cldf"))
    assert result.network_evaluations == sum(sizes) == 2 * SHAPE[2]
    for name in CLASSES:
        alone = pipeline.segment(make_volume(), FAST.replace(method="cldf"), [name])
        np.testing.assert_array_equal(alone.slice_maps[name], result.slice_maps[name])


def test_maps_and_uncertainty_are_the_networks_and_the_mask_that_of_raised_maps(pipeline: CDMPipeline) -> None:
    pipeline, volume = with_all_methods(pipeline), make_volume()
    stack = cut_slices(volume, pipeline.description.preprocess)
    mask = MaskSettings(gate="off", threshold_rule="fixed", fixed_threshold=0.75, components="all", saliency_smoothing_mm=0.0)
    plain, raised = (
        pipeline.segment(volume, FAST.replace(method="student", mask=mask.replace(least_peak=peak))) for peak in (0.0, LEAST_PEAK)
    )
    assert (raised.mask > 0).sum() > (plain.mask > 0).sum(), "or nothing is raised"
    of_student = StudentMaps(pipeline.student, stack, BatchLimit())
    for index, name in enumerate(CLASSES):
        np.testing.assert_array_equal(raised.slice_maps[name], of_student(index, np.arange(SHAPE[2])))
        np.testing.assert_array_equal(raised.saliency[name], plain.saliency[name])
        np.testing.assert_array_equal(raised.uncertainty[name], plain.uncertainty[name])
    assert raised.slice_uncertainty == plain.slice_uncertainty


@pytest.mark.parametrize("given", [{"edema": [True] * 7}, {"edema": [True] * 7, "tumor": [True] * 6}, {}])
def test_wrong_number_of_given_slices_is_refused(pipeline: CDMPipeline, given: dict[str, list[bool]]) -> None:
    count = len(given.get("tumor", []))
    name = "tumor" if "edema" in given else "edema"
    with pytest.raises(ValueError, match=rf"positive_slices\['{name}'\] has {count} entries; the volume has 7 slices"):
        pipeline.segment(make_volume(), positive_slices=given)


def test_chosen_classes_alone(pipeline: CDMPipeline) -> None:
    both = pipeline.segment(make_volume())
    for label, name in enumerate(CLASSES, start=1):
        result = pipeline.segment(make_volume(), class_names=[name])
        assert set(result.saliency) == set(result.class_scores) == set(result.slice_scores) == {name}
        assert set(np.unique(result.mask)) == {0, label}
        np.testing.assert_array_equal(result.saliency[name], both.saliency[name])
        assert result.network_evaluations == both.network_evaluations // 2
        assert not ((both.mask == label) & (result.mask != label)).any()
    nothing = pipeline.segment(make_volume(), class_names=[])
    assert not nothing.mask.any()
    with pytest.raises(ValueError, match=r"unknown class\(es\) \['stroke'\]: this model knows \['edema', 'tumor'\]"):
        pipeline.segment(make_volume(), class_names=["tumor", "stroke"])


def test_class_with_the_higher_score_wins_where_both_are_found(pipeline: CDMPipeline) -> None:
    alone = {name: pipeline.segment(make_volume(), class_names=[name]).mask > 0 for name in CLASSES}
    overlap = alone["edema"] & alone["tumor"]
    assert overlap.any()
    result = pipeline.segment(make_volume())
    winner = max(CLASSES, key=lambda name: result.class_scores[name])
    assert (result.mask[overlap] == CLASSES.index(winner) + 1).all()


def test_of_exclusive_classes_a_slice_holds_the_likeliest_alone(pipeline: CDMPipeline) -> None:
    volume = make_volume(shape=(18, 22, 12))
    logits = pipeline.gate_logits(cut_slices(volume, pipeline.description.preprocess))
    classifier = copy.deepcopy(pipeline.classifier)
    classifier.conv_out.bias -= torch.from_numpy(np.median(logits, axis=0))  # now either class is the likeliest somewhere
    pipeline = pipeline.with_networks(classifier=classifier)
    exclusive = pipeline.with_networks(description=dataclasses.replace(pipeline.description, exclusive_classes=True))
    assert exclusive.model_version != pipeline.model_version
    opened = FAST.replace(mask=MaskSettings(gate_threshold=0.0, gate_smoothing_mm=0.0, slice_consistency=1))
    result = exclusive.segment(volume, opened)
    scores = np.array([result.slice_scores[name] for name in CLASSES])
    assert len(set(scores.argmax(axis=0))) == len(CLASSES)  # or nothing is shown
    for index, name in enumerate(CLASSES):
        assert (result.saliency[name].max(axis=(0, 1)) > 0).tolist() == (scores.argmax(axis=0) == index).tolist()
        assert (exclusive.segment(volume, FAST, [name]).saliency[name].max(axis=(0, 1)) > 0).all()  # no gate, so it is everywhere
        given = {name: [True] * 12}
        assert (exclusive.segment(volume, opened, [name], given).saliency[name].max(axis=(0, 1)) > 0).all()
    both = pipeline.segment(volume, opened)
    assert all((both.saliency[name].max(axis=(0, 1)) > 0).all() for name in CLASSES)


@pytest.mark.parametrize("gate", ["off", "closed"])
def test_progress_rises_to_one(pipeline: CDMPipeline, gate: str) -> None:
    mask = MaskSettings(gate="off") if gate == "off" else MaskSettings(gate_threshold=1.0)
    shares: list[float] = []
    pipeline.segment(make_volume(shape=(18, 22, 20)), FAST.replace(mask=mask), progress=shares.append)
    assert shares == sorted(shares)
    assert len(set(shares)) == len(shares)
    assert shares[0] > 0
    assert shares[-1] == 1.0
    assert len(shares) == (6 if gate == "off" else 2)


def test_threads_answer_as_if_they_came_one_after_the_other(pipeline: CDMPipeline) -> None:
    volumes = [make_volume(seed) for seed in range(4)]
    settings = [FAST.replace(saliency=FAST.saliency.replace(mode=mode, seed=i, num_denoising_steps=2)) for i, mode in
                enumerate(("parallel", "derivative", "reference", "parallel"))]  # fmt: skip
    alone = [pipeline.segment(volume, chosen) for volume, chosen in zip(volumes, settings, strict=True)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(pipeline.segment, volumes * 2, settings * 2))
    for one, other in zip(alone * 2, together, strict=True):
        assert_equal(one, other)
        assert one.network_evaluations == other.network_evaluations


def test_single_slice_and_unusable_images(pipeline: CDMPipeline) -> None:
    picture = Volume(make_volume(shape=(30, 20, 1)).array, np.eye(4), "image")
    assert pipeline.segment(picture).mask.shape == (30, 20, 1)
    with pytest.raises(VolumeError, match="single intensity"):
        pipeline.segment(Volume(np.zeros((16, 16, 4), dtype=np.float32), np.eye(4)))
    deep = FAST.replace(saliency=FAST.saliency.replace(mode="reference", num_denoising_steps=200, reference_noise_level=0.05))
    with pytest.raises(ValueError, match="take fewer steps or more noise"):
        pipeline.segment(make_volume(), deep)
    assert pipeline.segment(make_volume()).mask.any()  # a failed call leaves the pipeline usable


def test_folder_round_trip(pipeline: CDMPipeline, model_folder: Path) -> None:
    loaded = CDMPipeline.from_pretrained(model_folder)
    assert loaded.model_version == pipeline.model_version
    assert loaded.description == pipeline.description
    assert dict(loaded.config.training) == {"seed": 0}
    assert_equal(loaded.segment(make_volume()), pipeline.segment(make_volume()))
    assert not any(parameter.requires_grad for parameter in loaded.unet.parameters())
    assert not loaded.classifier.training


def test_folder_is_in_diffusers_layout_and_holds_no_pickle(model_folder: Path) -> None:
    files = sorted(str(path.relative_to(model_folder)) for path in model_folder.rglob("*") if path.is_file())
    weights = "diffusion_pytorch_model.safetensors"
    networks = ("classifier", "condition_embedding", "unet")
    expected = [f"{network}/{file}" for network in networks for file in ("config.json", weights)]
    assert files == sorted([*expected, "model_index.json", "scheduler/scheduler_config.json"])
    index = json.loads((model_folder / "model_index.json").read_text())
    assert index["_class_name"] == "CDMPipeline"
    assert index["description"]["class_names"] == list(CLASSES)
    assert [path.name for path in model_folder.parent.iterdir()] == [model_folder.name]
    assert all(path.stat().st_mode & 0o044 for path in model_folder.rglob("*"))


def test_float16_on_disk_gives_close_maps_in_float32(pipeline: CDMPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "half", dtype=torch.float16)
    stored = load_file(tmp_path / "half" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert pipeline.unet.dtype == torch.float32  # what is in use is not touched
    loaded = CDMPipeline.from_pretrained(tmp_path / "half")
    assert {p.dtype for m in (loaded.unet, loaded.condition_embedding, loaded.classifier) for p in m.parameters()} == {torch.float32}
    assert loaded.model_version != pipeline.model_version
    first, second = loaded.segment(make_volume()), pipeline.segment(make_volume())
    for name in CLASSES:
        np.testing.assert_allclose(first.saliency[name], second.saliency[name], atol=0.05)
    loaded.save_pretrained(tmp_path / "again", dtype=torch.float16)
    assert CDMPipeline.from_pretrained(tmp_path / "again").model_version == loaded.model_version


def test_version_follows_weights_and_description(pipeline: CDMPipeline) -> None:
    assert len(pipeline.model_version) == 12
    assert make_pipeline(0).model_version == pipeline.model_version
    assert make_pipeline(1).model_version != pipeline.model_version
    assert make_pipeline(0, ("edema", "tumour")).model_version != pipeline.model_version
    changed = pipeline.with_settings(FAST.replace(slicing_axis=1), {"note": "x"})
    assert changed.model_version != pipeline.model_version
    assert changed.default_settings.slicing_axis == 1
    assert dict(changed.config.training) == {"seed": 0, "note": "x"}
    assert pipeline.default_settings == FAST


def test_existing_folder_is_replaced_as_a_whole(pipeline: CDMPipeline, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "model"
    make_pipeline(1).save_pretrained(folder)
    (folder / "left_over.txt").write_text("of the old model")
    pipeline.save_pretrained(folder)
    assert CDMPipeline.from_pretrained(folder).model_version == pipeline.model_version
    assert not (folder / "left_over.txt").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_saved_model_does_not_say_where_it_was_loaded_from(pipeline: CDMPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "first")
    CDMPipeline.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    assert not any(str(tmp_path) in path.read_text() for path in (tmp_path / "second").rglob("*.json"))
    assert CDMPipeline.from_pretrained(tmp_path / "second").model_version == pipeline.model_version


def test_failed_save_leaves_the_old_folder(pipeline: CDMPipeline, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    make_pipeline(1).save_pretrained(folder)
    with pytest.raises(TypeError):
        pipeline.save_pretrained(folder, max_shard_size=object())
    assert CDMPipeline.from_pretrained(folder).model_version == make_pipeline(1).model_version
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


class Bomb:
    """Goes off when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def copied(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "copy"))


def test_pickled_weights_are_refused_and_never_opened(model_folder: Path, tmp_path: Path) -> None:
    folder = copied(model_folder, tmp_path)
    bomb = tmp_path / "exploded"
    for path in folder.rglob("*.safetensors"):
        path.with_suffix(".bin").write_bytes(pickle.dumps(Bomb(bomb)))
        path.unlink()
    with pytest.raises(OSError, match=r"no file named diffusion_pytorch_model\.safetensors"):
        CDMPipeline.from_pretrained(folder)
    assert not bomb.exists()


def test_no_model_and_damaged_models_are_refused(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no model \(no model_index.json\)"):
        CDMPipeline.from_pretrained(tmp_path)
    folder = copied(model_folder, tmp_path)
    weights = folder / "classifier" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(OSError, match="safetensors"):
        CDMPipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"class_names": None}, "class_names"), ({"class_names": ["b", "a"]}, "alphabetical"), ({"volume": 1}, "unknown setting")],
)
def test_description_that_cannot_be_used_is_refused(model_folder: Path, tmp_path: Path, change: dict[str, object], message: str) -> None:
    folder = copied(model_folder, tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    index["description"] = {key: value for key, value in {**index["description"], **change}.items() if value is not None}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(SettingsError, match=message):
        CDMPipeline.from_pretrained(folder)


def test_pipeline_without_a_description_is_refused() -> None:
    model = tiny_saliency_model()
    with pytest.raises(ValueError, match="needs a description"):
        CDMPipeline(model.unet, model.condition_embedding, model.classifier, model.scheduler)

"""The exported bundle: run by MONAI's own runner in another process, its masks on the source grid and equal to the app's."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle.config_parser import ConfigParser
from monai.bundle.scripts import verify_net_in_out
from safetensors.torch import load_file

from app_cdm.bundle import cdm_student
from app_cdm.bundle.export import export_bundle
from app_cdm.bundle.metadata import RUNNER_PACKAGES
from app_cdm.cli import main
from app_cdm.config import PreprocessSettings
from app_cdm.data.slices import cut_slices
from app_cdm.data.volume import read_volume
from app_cdm.networks.student import StudentNetwork, with_neighbours
from app_cdm.pipeline import CDMPipeline, ModelDescription
from tests.tiny_networks import TINY, tiny_saliency_model

CLASSES = ("edema", "tumor")
CARRIED = {"__future__", "collections", "monai", "nibabel", "numpy", "pathlib", "torch", "typing"}
RUNNER = "import runpy, sys; sys.modules['app_cdm'] = None; runpy.run_module('monai.bundle', run_name='__main__', alter_sys=True)"


def make_student() -> StudentNetwork:
    """Untrained, with running statistics and outputs that vary across the slice."""
    torch.manual_seed(5)
    student = StudentNetwork(len(CLASSES), num_neighbours=2, channels=(8, 16), num_res_units=1)
    with torch.no_grad():
        student.train()(torch.randn(16, 5, 16, 16))
        student.eval().net[-1].weight.mul_(8)
    return student


@pytest.fixture(scope="module")
def pipeline() -> CDMPipeline:
    model = tiny_saliency_model(num_classes=len(CLASSES))
    description = ModelDescription(CLASSES, TINY.patch_size, PreprocessSettings(image_size=TINY.image_size))
    networks = (model.unet, model.condition_embedding, model.classifier, model.scheduler)
    return CDMPipeline(*networks, description.to_dict(), {"seed": 0}, student=make_student())


@pytest.fixture(scope="module")
def model(pipeline: CDMPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    pipeline.save_pretrained(folder)
    (folder.parent / "LICENSE.md").write_text("Licence of the weights\n")
    return folder


@pytest.fixture(scope="module")
def bundle(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "tiny_student"
    assert main(["export", "--model", str(model), "--output", str(folder)]) == 0
    return folder


def write_images(folder: Path) -> None:
    """Volumes that differ in size, voxel order, spacing and offset; the third is sliced sagittally."""
    generator = np.random.default_rng(2)
    folder.mkdir()
    affines = {
        "axial.nii.gz": ((33, 26, 6), np.diag([-1.0, 1.5, 5.0, 1.0])),
        "turned.nii.gz": ((7, 24, 19), np.array([[0, 0, 2.0, 3], [0, -1.0, 0, 9], [-4.0, 0, 0, -7], [0, 0, 0, 1]])),
        "oblique.nii": ((5, 21, 30), np.array([[6.0, 0.1, 0, 1], [-0.6, 1.0, 0, 2], [0, 0, 1.0, 3], [0, 0, 0, 1]])),
    }
    for name, (shape, affine) in affines.items():
        array = generator.normal(5, 2, shape)
        inner = tuple(slice(size // 5, size - size // 8) for size in shape)
        array[inner] += generator.random(array[inner].shape) * 400 + 100
        image = nib.Nifti1Image(array.astype(np.int16), affine)
        nib.save(image, folder / name)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "images"
    write_images(folder)
    return folder


@pytest.fixture(scope="module")
def masks(bundle: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `python -m monai.bundle run` writes, in a process that cannot import `app_cdm`."""
    output = tmp_path_factory.mktemp("masks")
    options = {"config_file": bundle / "configs" / "inference.json", "bundle_root": bundle, "dataset_dir": images, "output_dir": output}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, "run", *words, "--device", "cpu"], capture_output=True, text=True, check=False, cwd=output
    )
    assert done.returncode == 0, done.stderr
    return output


def test_runner_writes_masks_on_the_source_grid(images: Path, masks: Path) -> None:
    assert {path.name for path in masks.iterdir()} == {f"{name}_mask.nii.gz" for name in ("axial", "turned", "oblique")}
    for path in images.iterdir():
        source, mask = nib.load(path), nib.load(masks / f"{path.name.split('.')[0]}_mask.nii.gz")
        assert mask.shape == source.shape
        assert mask.get_data_dtype() == np.uint8
        np.testing.assert_allclose(mask.affine, source.affine, atol=1e-5)
        assert set(np.unique(np.asarray(mask.dataobj))) == {0, 1, 2}


def test_masks_are_those_of_the_app_without_gate_and_refinement(pipeline: CDMPipeline, images: Path, masks: Path) -> None:
    for path in images.iterdir():
        volume, mask = read_volume(path), np.asarray(nib.load(masks / f"{path.name.split('.')[0]}_mask.nii.gz").dataobj)
        default = pipeline.settings_for("student")
        settings = default.replace(mask=default.mask.replace(gate="off", least_peak=0.0, refinement="none", min_component_px=1))
        for index, name in enumerate(CLASSES):
            expected = pipeline.segment(volume, settings, [name]).mask > 0
            assert 0.02 < expected.mean() < 0.98
            assert not (mask == index + 1)[~expected].sum() > 0.001 * mask.size
            assert (expected & (mask == 0)).sum() <= 0.001 * mask.size


def parsed(bundle: Path, images: Path) -> ConfigParser:
    """The configuration, initialised in this process."""
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser.update({"bundle_root": str(bundle), "dataset_dir": str(images), "device": "cpu"})
    for index in range(len(parser["initialize"])):
        parser.get_parsed_content(f"initialize#{index}")
    return parser


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")  # MONAI makes every reader it knows
@pytest.mark.parametrize("crop", [True, False])
def test_network_and_its_input_are_those_of_the_student(
    pipeline: CDMPipeline, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crop: bool
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    preprocess = pipeline.description.preprocess.replace(crop_foreground=crop, lower_percentile=3.0, upper_percentile=90.0)
    export_bundle(pipeline.with_networks(description=pipeline.description.replace(preprocess=preprocess)), tmp_path / "bundle")
    parser = parsed(tmp_path / "bundle", images)
    network = parser.get_parsed_content("network").eval()
    seen: list[torch.Tensor] = []

    def watched(samples: torch.Tensor) -> torch.Tensor:
        seen.append(samples)
        with torch.no_grad():
            return network(samples)

    for path in sorted(images.iterdir()):
        item = parser.get_parsed_content("preprocessing")({"image": str(path)})
        probabilities = parser.get_parsed_content("inferer")(item["image"][None], watched)
        assert probabilities.shape == (1, len(CLASSES), *item["image"].shape[1:])
        slices = cut_slices(read_volume(path), preprocess).slices
        count = len(slices)
        samples = with_neighbours(slices, torch.arange(count), torch.zeros(count, dtype=torch.long), 2)
        torch.testing.assert_close(torch.cat(seen), samples, atol=1e-5, rtol=0)
        with torch.no_grad():
            torch.testing.assert_close(network(samples), pipeline.student(samples), atol=1e-4, rtol=0)  # log-odds
        seen.clear()


def test_layout_weights_and_metadata(pipeline: CDMPipeline, bundle: Path) -> None:
    files = {str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert files == {
        *("LICENSE", "configs/inference.json", "configs/metadata.json", "docs/README.md"),
        *("models/model.safetensors", "scripts/cdm_student.py"),
    }
    assert (bundle / "LICENSE").read_text() == "Licence of the weights\n"
    assert load_file(bundle / "models" / "model.safetensors").keys() == pipeline.student.net.state_dict().keys()
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    required = {"schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version"}
    assert required | {"name", "task", "description", "authors", "copyright", "intended_use"} < metadata.keys()
    assert metadata["intended_use"] == "research use only, not a medical device"
    assert metadata["required_packages_version"].items() >= RUNNER_PACKAGES.items()
    assert {name: version(name) for name in RUNNER_PACKAGES} == RUNNER_PACKAGES
    formats = metadata["network_data_format"]
    for tensor in (formats["inputs"]["image"], formats["outputs"]["pred"], formats["post_processed_outputs"]["pred"]):
        assert {"type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "channel_def"} <= tensor.keys()
    assert formats["inputs"]["image"]["channel_def"]["2"] == "the slice"
    assert formats["post_processed_outputs"]["pred"]["channel_def"] == {"0": "background", "1": "edema", "2": "tumor"}
    assert pipeline.model_version in (bundle / "docs" / "README.md").read_text()


def test_monai_verifies_network_input_and_output(bundle: Path) -> None:
    files = {"meta_file": str(bundle / "configs" / "metadata.json"), "config_file": str(bundle / "configs" / "inference.json")}
    verify_net_in_out("network_def", **files, device="cpu")
    with pytest.raises(ValueError, match="output channel number"):
        verify_net_in_out("network_def", **files, device="cpu", **{"_meta_#network_data_format#outputs#pred#num_channels": 7})


def test_what_the_bundle_carries_imports_neither_this_package_nor_more_than_monai_needs() -> None:
    tree = ast.parse(Path(cdm_student.__file__).read_text())
    names = [node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in tree.body if _is_import(node)]
    assert {str(name).split(".")[0] for name in names} == CARRIED


def _is_import(node: ast.stmt) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def test_export_replaces_a_bundle_and_nothing_else(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", "--model", str(model), "--output"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("keep")
    assert main([*arguments, str(other)]) == 1
    assert "something other than a bundle" in capsys.readouterr().err
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]
    folder = tmp_path / "bundle"
    for _ in range(2):
        assert main([*arguments, str(folder)]) == 0
        (folder / "old").touch()
    assert main([*arguments, str(folder)]) == 0
    assert not (folder / "old").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"other", "bundle"}


def test_model_without_a_student_is_refused(pipeline: CDMPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline.with_networks(student=None).save_pretrained(tmp_path / "model")
    assert main(["export", "--model", str(tmp_path / "model"), "--output", str(tmp_path / "bundle")]) == 1
    assert "a bundle needs a student" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("image", "message"),
    [(torch.full((1, 9, 9, 3), 4.0), "single intensity"), (torch.full((1, 9, 9, 3), torch.nan), "NaN or infinity")],
)
def test_images_that_cannot_be_used_are_refused(image: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cdm_student.scale_by_foreground(image, 0.5, 99.5)
    with pytest.raises(FileNotFoundError, match=r"no \*.nii"):
        cdm_student.find_images("nowhere", "*.nii")

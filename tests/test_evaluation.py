"""Evaluation on a tiny dataset with a threshold segmenter whose scores are known by hand."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from app_cdm.config import PreprocessSettings, SegmentationSettings, SettingsError
from app_cdm.data.slices import cut_slices
from app_cdm.data.volume import Volume, VolumeError, read_volume
from app_cdm.evaluation import EvaluationReport, EvaluationSettings, evaluate, format_report
from app_cdm.metrics.reference import find_reference_cases
from app_cdm.pipeline import Segmentation

AFFINE = np.diag([-2.0, -2.0, 4.0, 1.0])
REAL_DATA = Path(os.environ.get("APP_CDM_DATA", Path(__file__).parents[2] / "shared" / "data"))
NUM_SLICES = 5


class ThresholdSegmenter:
    """Marks bright pixels; a slice is positive from a share of bright pixels, unless the slices are given."""

    class_names: tuple[str, ...] = ("lesion", "other")
    model_version = "threshold"
    default_settings = SegmentationSettings(slicing_axis=0)

    def segment(
        self,
        volume: Volume,
        settings: SegmentationSettings | None = None,
        class_names: Sequence[str] | None = None,
        positive_slices: Mapping[str, Sequence[bool]] | None = None,
    ) -> Segmentation:
        assert settings is not None and settings.slicing_axis == 2 and class_names == ["lesion"]
        if volume.array.max() > 1000:
            raise VolumeError("too bright")
        bright = volume.array > 100
        share = bright.mean(axis=(0, 1))
        positive = share > 0.02 if positive_slices is None else np.asarray(positive_slices["lesion"])
        mask = (bright & positive).astype(np.uint8)
        return Segmentation(
            mask=mask,
            slice_maps={},
            geometry=cut_slices(volume, PreprocessSettings(image_size=16), 2).geometry,
            class_scores={"lesion": float(share.max())},
            slice_scores={"lesion": share.tolist()},
            slice_uncertainty={},
            method="cdm_saliency",
            timings={},
            network_evaluations=10 * int(positive.sum()),
            model_version=self.model_version,
        )


class OneClassSegmenter(ThresholdSegmenter):
    """The same, and knows of nothing else."""

    class_names = ("lesion",)


def write_case(root: Path, name: str, squares: Sequence[int], bright: Sequence[int]) -> list[dict[str, object]]:
    """One volume of 10x10 slices: reference squares of `squares[z]` px and bright squares of `bright[z]` px, both from one corner."""
    image, mask = np.full((10, 10, len(squares)), 50, np.int16), np.zeros((10, 10, len(squares)), np.uint8)
    for z, (side, lit) in enumerate(zip(squares, bright, strict=True)):
        mask[1 : 1 + side, 1 : 1 + side, z] = 1
        image[1 : 1 + lit, 1 : 1 + lit, z] = 200
    for folder, array, kind in (("images", image, "flair"), ("masks", mask, "seg")):
        (root / folder).mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(array, AFFINE), root / folder / f"{name}_{kind}.nii.gz")
    return [{"patient_id": name, "slice_index": z, "split": "test", "has_lesion": int(side > 0)} for z, side in enumerate(squares)]


def write_table(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Patients a (right but for one slice that is missed and one that is wrongly marked) and b (all right)."""
    rows = write_case(tmp_path, "a", [0, 4, 4, 1, 0], [0, 4, 2, 1, 3]) + write_case(tmp_path, "b", [0, 0, 3, 3, 0], [0, 0, 3, 3, 0])
    rows += [{"patient_id": "c", "slice_index": 0, "split": "train", "has_lesion": 1}]
    write_table(tmp_path / "slices.csv", rows)
    return tmp_path


def by_hand(pairs: Sequence[tuple[int, int]]) -> float:
    """Dice of squares of (reference, marked) side lengths."""
    return 2 * sum(min(r, m) ** 2 for r, m in pairs) / sum(r**2 + m**2 for r, m in pairs)


def test_all_slices_are_scored_as_by_hand(dataset: Path) -> None:
    report = evaluate(ThresholdSegmenter(), dataset, EvaluationSettings(class_name="lesion"))
    figures = report.figures
    # a: slice 3 has one bright pixel (1 %), so the gate misses it; slice 4 is bright without a lesion.
    slices = [1.0, by_hand([(4, 2)]), 0.0, 1.0, 1.0]
    assert figures["slice_dice"].mean == pytest.approx(np.mean(slices))
    assert (figures["slice_dice"].n, figures["found_share"].mean, figures["clean_negatives"].mean) == (5, 0.8, pytest.approx(4 / 5))
    assert figures["volume_dice"].mean == pytest.approx((by_hand([(4, 4), (4, 2), (1, 0), (0, 3)]) + 1) / 2)
    assert figures["slice_iou"].mean == pytest.approx(np.mean([1, 4 / 16, 0, 1, 1]))
    assert (figures["slice_hd95_px"].n, figures["slice_hd95_px"].num_undefined) == (4, 1)
    assert figures["volume_dice"].low <= figures["volume_dice"].mean <= figures["volume_dice"].high == 1.0
    # scores of positive slices 16, 4, 1, 9, 9 against 9, 0, 0, 0, 0 bright pixels
    assert figures["tag_auc"].mean == pytest.approx((5 + 4 + 4 + 4.5 + 4.5) / 25)
    assert (report.num_cases, report.num_patients, report.num_errors, report.dataset) == (2, 2, 0, dataset.name)
    assert report.network_evaluations_per_slice == pytest.approx(10 * (3 + 2) / 10)
    assert report.segmentation["slicing_axis"] == 2 and "volume_hd95_mm" not in figures


def test_given_tags_replace_the_gate(dataset: Path) -> None:
    report = evaluate(ThresholdSegmenter(), dataset, EvaluationSettings(protocol="tag_given", class_name="lesion"))
    assert report.figures["slice_dice"].mean == pytest.approx(np.mean([1.0, by_hand([(4, 2)]), 1.0, 1.0, 1.0]))
    assert report.figures["clean_negatives"].mean == report.figures["found_share"].mean == 1.0


def test_volume_protocol_scores_volumes_only(dataset: Path) -> None:
    report = evaluate(ThresholdSegmenter(), dataset, EvaluationSettings(protocol="volume", class_name="lesion", is_geometry_real=True))
    assert list(report.figures) == ["volume_dice", "volume_iou", "volume_hd95_px", "volume_hd95_mm", "tag_auc"]
    assert report.figures["volume_hd95_mm"].mean >= 2 * report.figures["volume_hd95_px"].mean > 0
    assert np.isnan(report.figures["tag_auc"].mean) and report.figures["tag_auc"].n == 2


def test_failing_case_counts_as_empty_and_loses_no_other(dataset: Path) -> None:
    path = dataset / "images" / "a_flair.nii.gz"
    nib.save(nib.Nifti1Image(np.full((10, 10, NUM_SLICES), 5000, np.int16), AFFINE), path)
    report = evaluate(ThresholdSegmenter(), dataset, EvaluationSettings(class_name="lesion"))
    assert (report.num_errors, report.cases[0].error) == (1, "VolumeError: too bright")
    assert report.figures["slice_dice"].mean == pytest.approx(2 / 5)
    assert report.figures["volume_dice"].mean == pytest.approx(0.5)
    path.write_bytes(b"broken")
    report = evaluate(ThresholdSegmenter(), dataset, EvaluationSettings(class_name="lesion"))
    assert report.num_errors == 1 and report.figures["volume_dice"].mean == 1.0 and report.cases[0].num_slices == 0


def test_mask_on_another_grid_is_an_error(dataset: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((10, 10, NUM_SLICES), np.uint8), np.eye(4)), dataset / "masks" / "a_seg.nii.gz")
    report = evaluate(ThresholdSegmenter(), dataset, EvaluationSettings(class_name="lesion"))
    assert "does not lie on the grid" in report.cases[0].error and report.cases[1].error == ""


def test_masks_of_several_labels_are_scored_by_those_of_the_class_or_refused(dataset: Path) -> None:
    path = dataset / "masks" / "a_seg.nii.gz"
    labels = read_volume(path).array.astype(np.uint8)
    labels[7:9, 7:9, 0] = 2
    nib.save(nib.Nifti1Image(labels, AFFINE), path)
    with pytest.raises(ValueError, match=r"hold the values \[1, 2\]: say which are 'lesion' \(--reference-values\)"):
        evaluate(ThresholdSegmenter(), dataset, EvaluationSettings(class_name="lesion"))
    scored = evaluate(ThresholdSegmenter(), dataset, EvaluationSettings(class_name="lesion", reference_values=(1,)))
    assert scored.figures["slice_dice"].n == 5 and scored.figures["slice_dice"].mean == pytest.approx((3 + by_hand([(4, 2)])) / 5)
    assert EvaluationSettings.from_dict(scored.evaluation).reference_values == (1,)
    both = evaluate(OneClassSegmenter(), dataset)
    assert both.figures["slice_dice"].n == 6, "of one class any value above 0 counts"
    nib.save(nib.Nifti1Image(np.where(labels == 2, 0, labels), AFFINE), path)
    other = dataset / "masks" / "b_seg.nii.gz"
    nib.save(nib.Nifti1Image(2 * read_volume(other).array, AFFINE), other)
    with pytest.raises(ValueError, match="say which are 'lesion'"):
        evaluate(ThresholdSegmenter(), dataset, EvaluationSettings(class_name="lesion"))
    other.write_bytes(b"broken")
    assert evaluate(ThresholdSegmenter(), dataset, EvaluationSettings(class_name="lesion")).num_errors == 1


def test_report_survives_json(dataset: Path, tmp_path: Path) -> None:
    report = evaluate(ThresholdSegmenter(), dataset, EvaluationSettings(class_name="lesion"))
    report.save(tmp_path / "report.json")
    text = (tmp_path / "report.json").read_text()
    again = EvaluationReport.from_json(text)
    assert again.to_json() == text and again.figures == report.figures
    assert again.cases[1].scores == report.cases[1].scores and np.isnan(again.cases[1].volume_hd95_mm)
    assert "NaN" not in text and EvaluationSettings.from_dict(json.loads(text)["evaluation"]).protocol == "all_slices"


def test_table_names_every_figure(dataset: Path) -> None:
    report = evaluate(ThresholdSegmenter(), dataset, EvaluationSettings(class_name="lesion", limit=1))
    lines = format_report(report).splitlines()
    assert "1 images of 1 patients, 0 errors" in lines[0]
    assert [line.split("|")[1].strip() for line in lines[4:]] == list(report.figures)
    assert "| slice_hd95_px | " in format_report(report) and lines[-1].endswith("| 5 | 0 |")


def test_progress_reaches_one(dataset: Path) -> None:
    shares: list[float] = []
    evaluate(ThresholdSegmenter(), dataset, EvaluationSettings(class_name="lesion"), progress=shares.append)
    assert shares == [0.5, 1.0]


def test_pictures_are_cases_too(tmp_path: Path) -> None:
    picture, mask = np.full((8, 12), 50, np.uint8), np.zeros((8, 12), np.uint8)
    picture[2:5, 3:9], mask[2:5, 3:9] = 200, 1
    for folder, array in (("images", picture), ("masks", mask)):
        (tmp_path / folder).mkdir()
        Image.fromarray(array).save(tmp_path / folder / "benign_1.png")
    row = {"group_id": "g", "image_id": "benign_1", "split": "val", "has_lesion": 1, "label_conflict": 0}
    write_table(tmp_path / "images.csv", [row, {**row, "image_id": "benign_2", "label_conflict": 1}])
    report = evaluate(ThresholdSegmenter(), tmp_path, EvaluationSettings(class_name="lesion", split="val"))
    assert report.num_cases == 1 and report.figures["slice_dice"].mean == report.figures["volume_dice"].mean == 1.0
    assert report.cases[0].patient_id == "g"


def test_training_masks_are_out_of_reach(dataset: Path) -> None:
    with pytest.raises(SettingsError, match="training images carry tags only"):
        EvaluationSettings(split="train")
    with pytest.raises(ValueError, match="training images carry tags only"):
        find_reference_cases(dataset, "train")


def test_bad_datasets_are_refused(dataset: Path) -> None:
    for settings, message in (
        (EvaluationSettings(class_name="lesion", split="val"), "no row of split 'val'"),
        (EvaluationSettings(class_name="lesion", column="has_rv"), "no column"),
        (EvaluationSettings(class_name="tumour"), "must be one of"),
        (EvaluationSettings(), "must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(ThresholdSegmenter(), dataset, settings)
    nib.save(nib.Nifti1Image(np.zeros((10, 10, NUM_SLICES), np.uint8), AFFINE), dataset / "images" / "a_t1ce.nii.gz")
    with pytest.raises(ValueError, match="name the modality"):
        find_reference_cases(dataset, "test")
    assert find_reference_cases(dataset, "test", modality="flair")[0].image.name == "a_flair.nii.gz"
    (dataset / "masks" / "b_seg.nii.gz").unlink()
    with pytest.raises(FileNotFoundError):
        find_reference_cases(dataset, "test", modality="flair")


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="real data is not here (APP_CDM_DATA)")
@pytest.mark.parametrize(
    ("name", "split", "modality", "cases", "positive"),
    [
        ("lgg", "test", "", 20, 256),
        ("lgg", "val", "", 10, 96),
        ("busi", "test", "", 158, None),
        ("brats2015_ext6", "external_test", "flair", 6, None),
    ],
)
def test_real_datasets_are_understood(name: str, split: str, modality: str, cases: int, positive: int | None) -> None:
    found = find_reference_cases(REAL_DATA / name, split, modality=modality)
    assert len(found) == cases
    assert positive is None or sum(sum(case.tags) for case in found) == positive

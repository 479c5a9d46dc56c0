from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from demo import template
from demo.cases import Case, CaseSpec, draw_spec, make_case
from demo.study import DEMO_CASES, DICOM_CASE, main, write_tagged_study
from demo.template import Template

SPEC = CaseSpec("case", seed=7, radius_mm=18.0, side=-1, slice_mm=6.5, tilt_deg=8.0)


@pytest.fixture(scope="module")
def case() -> Case:
    return make_case(SPEC)


def test_same_specification_same_voxels(case: Case) -> None:
    again = make_case(SPEC)
    assert np.array_equal(case.image, again.image)
    assert np.array_equal(case.mask, again.mask)
    assert np.array_equal(case.geometry.affine, again.geometry.affine)


def test_case_looks_like_an_axial_flair_volume(case: Case) -> None:
    assert case.image.shape[:2] == (160, 160)
    assert np.allclose(nib.affines.voxel_sizes(case.geometry.affine), (1.5, 1.5, 6.5), atol=1e-4)
    assert nib.aff2axcodes(case.geometry.affine) == ("L", "P", "S")
    air = case.image[:6, :6]
    head = case.image > 5 * air.mean()
    assert 0.15 < head.mean() < 0.5
    middle = case.image[:, :, case.image.shape[2] // 2]
    # Fat and scalp outshine the brain: no threshold finds the lesion.
    rim = head[:, :, case.image.shape[2] // 2]
    rim = rim & ~ndimage.binary_erosion(rim, iterations=4)
    brain = middle[64:96, 60:100]
    assert np.percentile(middle[rim], 75) > 1.2 * np.median(brain)


def test_truth_lies_on_the_lesion(case: Case) -> None:
    mask = case.mask > 0
    ring = ndimage.binary_dilation(mask, iterations=4) & ~ndimage.binary_dilation(mask, iterations=1)
    assert case.image[mask].mean() > 1.15 * np.median(case.image[ring])
    # side -1 is the patient's left: negative x in RAS, up to the deformation.
    centre = np.argwhere(mask).mean(axis=0)
    assert (case.geometry.affine @ [*centre, 1.0])[0] < 0
    assert case.slice_tags() == [int(mask[:, :, k].any()) for k in range(mask.shape[2])]


def test_volume_follows_the_radius(case: Case) -> None:
    volume_ml = case.mask.sum() * abs(np.linalg.det(case.geometry.affine[:3, :3])) / 1000.0
    assert 0.3 < volume_ml / (4.0 / 3.0 * np.pi * 1.8**3) < 2.5


def test_lesion_free_case_has_no_truth() -> None:
    free = make_case(CaseSpec("free", seed=8, radius_mm=0.0, slice_mm=6.5))
    assert not free.mask.any()
    assert not any(free.slice_tags())


def test_demo_covers_what_it_should() -> None:
    radii = [spec.radius_mm for spec in (*DEMO_CASES, DICOM_CASE)]
    assert radii.count(0.0) == 1
    assert min(r for r in radii if r) < 15.0 < 25.0 < max(radii)
    assert {spec.side for spec in DEMO_CASES if spec.radius_mm} == {-1, 1}
    assert len({spec.seed for spec in (*DEMO_CASES, DICOM_CASE)}) == 5


def test_random_cases_differ_and_do_not_repeat_the_demo() -> None:
    specs = [draw_spec("x", seed) for seed in range(10_000, 10_040)]
    assert len({spec.radius_mm for spec in specs}) > 20
    assert any(spec.radius_mm == 0.0 for spec in specs)
    assert all(spec.radius_mm == 0.0 or 5.0 <= spec.radius_mm <= 30.0 for spec in specs)
    assert not {spec.seed for spec in specs} & {spec.seed for spec in DEMO_CASES}


def test_tagged_study_hides_the_truth_unless_asked(case: Case, tmp_path: Path) -> None:
    assert write_tagged_study(tmp_path / "tags", [case], "val") == 1
    assert sorted(p.name for p in (tmp_path / "tags").iterdir()) == ["images", "slices.csv"]
    with (tmp_path / "tags" / "slices.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["patient_id", "slice_index", "split", "has_lesion"]
    assert [int(row["has_lesion"]) for row in rows] == case.slice_tags()
    write_tagged_study(tmp_path / "truth", [case], with_truth=True)
    image = nib.load(tmp_path / "truth" / "images" / "case_flair.nii.gz")
    mask = nib.load(tmp_path / "truth" / "masks" / "case_seg.nii.gz")
    assert np.allclose(image.affine, mask.affine)
    assert image.shape == mask.shape
    assert np.array_equal(np.asarray(image.dataobj), case.image)


def test_command_line_rejects_nonsense(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as error:
        main(["--out", str(tmp_path), "--cases", "0"])
    assert error.value.code == 2


def test_a_kept_template_is_read_and_a_broken_one_is_derived_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = [np.random.default_rng(index).random((20, 30, 40), dtype=np.float32) for index in range(6)]
    derived: list[Template] = []

    def derive(grey_file: Path, white_file: Path) -> Template:
        assert grey_file.exists() and white_file.exists()
        derived.append(Template(*fields))
        return derived[-1]

    monkeypatch.setattr(template, "_derive_template", derive)
    load_template = template.load_template.__wrapped__
    assert load_template(tmp_path) is derived[0]
    (kept,) = tmp_path.iterdir()
    assert all(np.array_equal(array, field) for array, field in zip(vars(load_template(tmp_path)).values(), fields, strict=True))
    assert len(derived) == 1
    kept.write_bytes(kept.read_bytes()[:10_000])
    assert load_template(tmp_path) is derived[1]
    assert list(tmp_path.iterdir()) == [kept]
    load_template(tmp_path)
    assert len(derived) == 2

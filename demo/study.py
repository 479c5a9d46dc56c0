"""The demo study, and synthetic studies with image-level tags for any seed.

`python -m demo.study --out DIR --cases N --seed S` writes `DIR/images/*.nii.gz` and `DIR/slices.csv`
(patient_id, slice_index, split, has_lesion); true masks go to `DIR/masks` only with `--with-truth`.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import nibabel as nib

from demo.cases import Case, CaseSpec, draw_spec, make_case
from demo.dicom import write_series
from demo.workspace import check_workspace, mark_workspace

DEMO_CASES = (
    CaseSpec("flair_01", seed=11, radius_mm=24.0, side=1, slice_mm=6.0),
    CaseSpec("flair_02", seed=12, radius_mm=12.0, side=-1, slice_mm=5.5, tilt_deg=9.0, orientation="RAS"),
    CaseSpec("flair_03", seed=13, radius_mm=29.0, side=-1, slice_mm=6.5, pixel_mm=1.4),
    CaseSpec("flair_04", seed=14, radius_mm=0.0, slice_mm=6.0, tilt_deg=-6.0),
)
DICOM_CASE = CaseSpec("flair_05_dicom", seed=15, radius_mm=19.0, side=1, slice_mm=6.0, tilt_deg=11.0)


def make_demo_study(workspace: Path) -> list[Case]:
    """Writes the demo study: four NIfTI cases, one of them without lesion, and one DICOM series.

    Args:
        workspace: `study/` inside it is what the server sees; `truth/` beside it holds the true masks.

    Returns:
        The cases, in order; the same study each time.

    Raises:
        WorkspaceError: the workspace holds files that are not the demo's.
    """
    check_workspace(workspace)
    mark_workspace(workspace)
    study, truth = workspace / "study", workspace / "truth"
    for folder in (study, truth):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    cases = [make_case(spec) for spec in (*DEMO_CASES, DICOM_CASE)]
    for case in cases:
        if case.spec is DICOM_CASE:
            write_series(case, study / case.spec.case_id)
        else:
            nib.save(case.image_nifti(), study / f"{case.spec.case_id}.nii.gz")
        nib.save(case.mask_nifti(), truth / f"{case.spec.case_id}.nii.gz")
    return cases


def draw_cases(count: int, seed: int) -> Iterator[Case]:
    """Random cases `synth_<seed>_<number>`; each has its own stream, so a longer study begins with a shorter one."""
    for number in range(count):
        yield make_case(draw_spec(f"synth_{seed}_{number:03d}", seed=seed * 10_000 + number))


def write_tagged_study(out: Path, cases: Iterable[Case], split: str = "train", *, with_truth: bool = False) -> int:
    """Writes images and the table of image-level slice tags, and masks only when asked.

    Returns:
        Number of cases written.
    """
    for name in ("images", *(["masks"] if with_truth else [])):
        (out / name).mkdir(parents=True, exist_ok=True)
    count = 0
    with (out / "slices.csv").open("w", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["patient_id", "slice_index", "split", "has_lesion"])
        for case in cases:
            count += 1
            name = case.spec.case_id
            nib.save(case.image_nifti(), out / "images" / f"{name}_flair.nii.gz")
            if with_truth:
                nib.save(case.mask_nifti(), out / "masks" / f"{name}_seg.nii.gz")
            table.writerows([name, index, split, tag] for index, tag in enumerate(case.slice_tags()))
            stream.flush()
    return count


def main(arguments: list[str] | None = None) -> int:
    """Command line: see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m demo.study", description="Write a synthetic FLAIR study with image-level slice tags.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--cases", type=int, default=20, help="number of cases")
    parser.add_argument("--seed", type=int, default=0, help="seed of the study")
    parser.add_argument("--split", default="train", help="value of the split column")
    parser.add_argument("--with-truth", action="store_true", help="also write the true masks")
    options = parser.parse_args(arguments)
    if options.cases < 1 or options.seed < 0:
        parser.error(f"--cases {options.cases} must be at least 1 and --seed {options.seed} at least 0")
    count = write_tagged_study(options.out, draw_cases(options.cases, options.seed), options.split, with_truth=options.with_truth)
    print(f"{count} cases in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`docs/README.md` of a bundle."""

from __future__ import annotations

from app_cdm.bundle.metadata import RUNNER_PACKAGES
from app_cdm.pipeline import CDMPipeline

TEMPLATE = """# {name}

Segments {classes} in 3D images, slice by slice, with a small U-Net that learned from image-level tags alone. Weights `{model_version}`.

**Research use only, not a medical device.**

## Run

```sh
pip install "monai[fire,ignite,nibabel]" safetensors    # {packages}
python -m monai.bundle run --config_file {name}/configs/inference.json --bundle_root {name} \\
    --dataset_dir <folder of NIfTI files> --output_dir <folder>
```

Every `*.nii` and `*.nii.gz` of the folder gives `<name>_mask.nii.gz`: uint8, the shape and affine of its image, {labels}.
Add `--image_pattern 'case*.nii.gz'` for some of them, `--threshold 0.4` for another threshold on the probability, `--device cpu`.

The weights are `models/model.safetensors`; nothing here is pickled. `scripts/cdm_student.py` is Python that MONAI runs with the
configuration: read both before running a bundle from somebody you do not know.

## What it does

1. Slices lie along the voxel axis with the largest spacing (among equals the one closest to head-foot), seen as a viewer shows them.
2. Percentiles {lower:g} and {upper:g} of the foreground become -1 and 1{crop}.
3. Every slice with {neighbours} on either side, resized to {size}x{size}, passes the network once.
4. Probabilities are resized back, voxels above {threshold:g} get the most probable class, and the mask is turned back to the grid of the
   file.

## What differs from the app that trained it

- No slice gate: the app decides first which slices hold a class and leaves the others empty. Here every slice is segmented, so expect
  false positives on slices without the target.
- No least peak: the app scales slices that its gate lets through until they hold a mask.
- No refinement by the image, and components smaller than {min_component} pixels of the network stay.
- Where classes overlap the more probable one wins in each voxel; in the app the one with the higher score in the volume.
- NIfTI with one 3D volume alone. Where spacing and sform of a header disagree, MONAI's reader takes the qform, and the mask has that one.
"""


def bundle_readme(pipeline: CDMPipeline, name: str) -> str:
    """The text, with the values of the model."""
    assert pipeline.student is not None
    preprocess, mask = pipeline.description.preprocess, pipeline.description.student_mask
    neighbours = pipeline.student.config.num_neighbours
    return TEMPLATE.format(
        name=name,
        classes=", ".join(pipeline.class_names),
        labels=", ".join(f"{index + 1} is {class_name}" for index, class_name in enumerate(pipeline.class_names)),
        model_version=pipeline.model_version,
        packages=", ".join(f"{package} {version}" for package, version in RUNNER_PACKAGES.items()) + " were tested",
        lower=preprocess.lower_percentile,
        upper=preprocess.upper_percentile,
        crop="; slices are cropped to the foreground" if preprocess.crop_foreground else "",
        neighbours=f"{neighbours} neighbour{'' if neighbours == 1 else 's'}",
        size=preprocess.image_size,
        threshold=mask.fixed_threshold,
        min_component=mask.min_component_px,
    )

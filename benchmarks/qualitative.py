"""Best, median and worst volume of `lgg` test, and every total failure: `python -m benchmarks.qualitative --data <folder>`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from app_cdm.data.volume import read_volume
from app_cdm.metrics.overlap import dice
from app_cdm.metrics.reference import find_reference_cases, read_reference
from app_cdm.pipeline import CDMPipeline
from benchmarks.shipped import MODEL, ROOT

FAILURE = 0.1
COLOURS = {"cdm_saliency": "#ff8c00", "cldf": "#00d7ff", "student": "#50ff50", "reference": "#ffd000"}


@dataclass(frozen=True)
class Shown:
    """One volume of the figure."""

    image: np.ndarray
    masks: dict[str, np.ndarray]
    dice: dict[str, float]


def main() -> int:
    """Segments the split with every method and draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds lgg/")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "figures" / "lgg_test.png")
    options = parser.parse_args()
    pipeline = CDMPipeline.from_pretrained(MODEL)
    found = []
    for case in find_reference_cases(options.data / "lgg", "test", "has_lesion", "flair"):
        volume = read_volume(case.image)
        reference = read_reference(case, volume, ())
        masks = {method: pipeline.segment(volume, pipeline.settings_for(method)).mask > 0 for method in pipeline.methods}
        found.append(Shown(volume.array, {**masks, "reference": reference}, {name: dice(mask, reference) for name, mask in masks.items()}))
    best_method = pipeline.methods[0]
    found.sort(key=lambda shown: shown.dice[best_method])
    rows = {"best": found[-1], "median": found[len(found) // 2], "worst": found[0]}
    rows |= {f"failure {n}": shown for n, shown in enumerate(found[1:], start=2) if shown.dice[best_method] < FAILURE}
    draw(rows, [*reversed(pipeline.methods), "reference"], options.output)
    print(
        f"wrote {options.output}; {sum(shown.dice[best_method] < FAILURE for shown in found)} of {len(found)} volumes below Dice {FAILURE}"
    )
    return 0


def draw(rows: dict[str, Shown], names: list[str], path: Path) -> None:
    """Writes the PNG; each row shows the slice with most of the reference."""
    figure = Figure(figsize=(2.2 * (len(names) + 1), 2.3 * len(rows)), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(names) + 1, squeeze=False)
    for line, (title, shown) in zip(axes, rows.items(), strict=True):
        index = int(shown.masks["reference"].sum(axis=(0, 1)).argmax())
        for axis, name in zip(line, ["image", *names], strict=True):
            axis.imshow(shown.image[:, :, index].T, cmap="gray")
            axis.set_axis_off()
            if name in shown.masks and shown.masks[name][:, :, index].any():
                axis.contour(shown.masks[name][:, :, index].T, levels=[0.5], colors=[COLOURS[name]], linewidths=1.3)
            text = title if name == "image" else f"{name} {shown.dice[name]:.2f}" if name in shown.dice else name
            axis.set_title(text, color="white", fontsize=9)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    raise SystemExit(main())

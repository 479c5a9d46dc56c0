"""The final rows with other seeds: `python -m benchmarks.seeds --data <folder> --scorer <score_rest.py>`.

Decoder and student are trained anew, as `make train` does it, on the classifier and diffusion model that ship, and scored over REST. A
training that was interrupted is resumed, and what is scored stays.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.scorer import ROWS, score_over_rest
from benchmarks.shipped import MODEL, ROOT, runs_of_model
from demo.server import LabelServer, find_free_port

KEYS = ("student", "cldf")
FIGURES = {"volume_dice": "volume Dice", "slice_dice": "slice Dice", "slice_found": "found", "clean_negatives": "clean negatives"}


def main() -> int:
    """Trains and scores what is not there yet, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds lgg/")
    parser.add_argument(
        "--synthetic", type=Path, default=ROOT / "runs" / "synthetic", help="studies of demo.study, as `make train` makes them"
    )
    parser.add_argument("--scorer", type=Path, required=True, help="score_rest.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--run", type=Path, default=runs_of_model() / "seeds", help="folder for models and results as JSON")
    options = parser.parse_args()
    for seed in options.seeds:
        run_seed(options, seed)
    print("\n".join(seed_table(runs_of_model() / "benchmark", options.run)))
    return 0


def run_seed(options: argparse.Namespace, seed: int) -> None:
    """Trains with one seed, unless that is done, and scores."""
    folder = options.run / f"seed_{seed}"
    model = folder / "models" / MODEL.name
    if not model.exists():
        lgg, synthetic = options.data / "lgg", options.synthetic
        program = [sys.executable, "-m", "app_cdm"]
        command = [*program, "train", *tagged(lgg), *tagged(synthetic), "--classes", "tumor=has_lesion", "--split", "train"]
        command += ["--preset", "tiny", "--seed", str(seed), "--initial-model", str(MODEL)]
        command += ["--stages", "cldf", "student", "--output", str(folder / "run")]
        subprocess.run(command, check=True, cwd=ROOT)
        command = [*program, "calibrate", "--model", str(folder / "run" / "model"), *tagged(lgg), "--classes", "tumor=has_lesion"]
        command += ["--split", "val", "--modes", "--output", str(model)]  # the gate alone, which asks the student too
        subprocess.run(command, check=True, cwd=ROOT)
    (folder / "studies").mkdir(exist_ok=True)
    extra = ("--model-dir", str(model.parent), "--model", model.name)
    with LabelServer(folder / "studies", find_free_port(), folder / "server.log", folder / "cache", extra) as server:
        for row in ROWS:
            if row.key in KEYS:
                score_over_rest(options.scorer, server.url, row, options.data / "lgg", "test", folder / f"rest_{row.key}.json")


def tagged(source: Path) -> list[str]:
    """Options that name the images of a folder and their tags."""
    return ["--images", str(source / "images"), "--tags", str(source / "slices.csv"), "--pattern", "{image}_flair.nii.gz"]


def seed_table(shipped: Path, run: Path) -> list[str]:
    """Markdown lines: a row a task and training, and mean and standard deviation over them; none where nothing has been run.

    Args:
        shipped: folder with the results of the model that ships.
        run: folder of the trainings with several seeds.
    """
    folders = {"that ships": shipped, **{path.name.removeprefix("seed_"): path for path in sorted(run.glob("seed_*"))}}
    lines = []
    for key in KEYS:
        scored = {seed: folder / f"rest_{key}.json" for seed, folder in folders.items() if (folder / f"rest_{key}.json").exists()}
        found = {seed: json.loads(path.read_text())["summary"] for seed, path in scored.items()}
        if len(found) < 2:
            continue
        for seed, s in found.items():
            area, f1 = _held_out(MODEL if folders[seed] == shipped else folders[seed] / "models" / MODEL.name)
            lines.append(f"| `{key}` | {seed} | {area:.4f} | {f1:.3f} | " + " | ".join(f"{s[name]:.3f}" for name in FIGURES) + " |")
        columns = [[s[name] for s in found.values()] for name in FIGURES]
        spread = [f"{statistics.mean(column):.3f} ± {statistics.stdev(column):.3f}" for column in columns]
        lines.append(f"| `{key}` | **mean ± standard deviation** | | | " + " | ".join(spread) + " |")
    heading = [
        "| task | seed | held-out tags: AUC | F1 | " + " | ".join(FIGURES.values()) + " |",
        "|---|---|---|---|" + "---|" * len(FIGURES),
    ]
    return [*heading, *lines] if lines else []


def _held_out(model: Path) -> tuple[float, float]:
    """How well a model's gate tells held-out slices apart: AUC, and F1 at its threshold, as `calibrate` has recorded them."""
    chosen = json.loads((model / "model_index.json").read_text())["training"]["calibration"]
    return max(chosen["gate_smoothing_mm"]["slice_auc"].values()), chosen["gate_threshold"]["slice_f1"]


if __name__ == "__main__":
    raise SystemExit(main())

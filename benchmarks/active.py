"""Simulated radiologist: `uncertain` against random order, `python -m benchmarks.active --data <folder>`.

The classifier alone, on `lgg` train patients at 32 pixels. From a few tagged patients on, a few more are tagged a round: the most doubtful
ones by the classifier of that round (what Next Sample offers), or any. After each round the classifier is trained some steps further on all
tags, from the same weights for both orders, and judged by its tag AUC on the slices of the validation patients, which are never offered. No
mask is read. Finished runs are kept; `--fresh` starts over.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import random
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from app_cdm.config import MaskSettings, PreprocessSettings
from app_cdm.data.dataset import TaggedSlices, find_images, load_tagged_slices
from app_cdm.data.tags import PRESENT, read_tags
from app_cdm.metrics.ranking import tag_auc
from app_cdm.networks.classifier import NoiseConditionalClassifier
from app_cdm.networks.presets import NetworkSettings, build_classifier, build_scheduler
from app_cdm.segmentation.gate import slice_logits, slice_scores
from app_cdm.training.loop import TrainingLoop
from app_cdm.training.optimization import OptimizerSettings
from app_cdm.training.settings import TrainSettings
from app_cdm.training.tasks import ClassifierTask
from benchmarks.learning_curve import ROOT, write_document
from lib.activelearning.doubt import doubt

SIZE = 32
NETWORK = NetworkSettings(image_size=SIZE, classifier_channels=(32, 64, 96))
# lgg has nominal spacing, so a millimetre is a slice.
SMOOTHING = min(1.0, MaskSettings().gate_smoothing_mm)
ORDERS = ("uncertain", "random")


def main() -> int:
    """Simulates what is not there yet, and writes the document."""
    options = _parser().parse_args()
    if options.fresh:
        shutil.rmtree(options.run, ignore_errors=True)
    options.run.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    pool, judged = _load(options.data, "train"), _load(options.data, "val")
    for seed in range(options.seeds):
        path = options.run / f"seed_{seed}.json"
        if not path.exists():
            began = time.monotonic()
            found = simulate(pool, judged, options, seed)
            path.write_text(json.dumps({"seed": seed, "curves": found, "seconds": round(time.monotonic() - began, 1)}))
            print(f"seed {seed}: {found}", flush=True)
    settings = {name: getattr(options, name) for name in ("start", "per_round", "rounds", "first_steps", "steps", "batch_size")}
    parts = [json.loads(path.read_text()) for path in sorted(options.run.glob("seed_*.json"))]
    settings |= {"size": SIZE, "pool": len(pool.image_ids), "judged": len(judged.image_ids), "machine": platform.machine()}
    (options.run / "result.json").write_text(json.dumps({"settings": settings, "seeds": parts}, indent=1))
    write_document(options.loop_run, options.run, options.output, options.figures)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds lgg/")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions: first patients, weights and draws (default: %(default)s)")
    parser.add_argument("--start", type=int, default=4, help="patients tagged at first (default: %(default)s)")
    parser.add_argument("--per-round", type=int, default=3, help="patients tagged a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds after the first (default: %(default)s)")
    parser.add_argument("--first-steps", type=int, default=150, help="classifier steps on the first patients (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=75, help="further steps a round (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="slices a step (default: %(default)s)")
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "active", help="folder for results as JSON")
    parser.add_argument("--loop-run", type=Path, default=ROOT / "runs" / "loop", help="folder of benchmarks.loop")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "learning-curve.md", help="document to write")
    parser.add_argument("--figures", type=Path, default=ROOT / "docs" / "figures", help="folder of the figures")
    parser.add_argument("--fresh", action="store_true", help="do everything again")
    return parser


def simulate(pool: TaggedSlices, judged: TaggedSlices, options: argparse.Namespace, seed: int) -> dict[str, list[float]]:
    """Held-out tag AUC by order: with the first patients, then after each round."""
    order = list(range(len(pool.image_ids)))
    random.Random(seed).shuffle(order)
    torch.manual_seed(seed)
    first = build_classifier(NETWORK, 1)
    train(first, of_patients(pool, order[: options.start]), options, options.first_steps, seed)
    curves = {}
    for name in ORDERS:
        classifier, tagged = copy.deepcopy(first), order[: options.start]
        curves[name] = [judge(classifier, judged)]
        for number in range(options.rounds):
            waiting = [patient for patient in order if patient not in tagged]  # by lot, for both orders
            if name == "uncertain":
                doubts = {patient: doubt(scores_of(classifier, pool, patient)) for patient in waiting}
                waiting.sort(key=lambda patient: -doubts[patient])
            tagged = tagged + waiting[: options.per_round]
            train(classifier, of_patients(pool, tagged), options, options.steps, 1000 * (seed + 1) + number)
            curves[name].append(judge(classifier, judged))
    return curves


def train(classifier: NoiseConditionalClassifier, data: TaggedSlices, options: argparse.Namespace, steps: int, seed: int) -> None:
    """Some steps of the trainer's own classifier stage, in place."""
    optimizer = OptimizerSettings(
        num_steps=steps, batch_size=options.batch_size, learning_rate=5e-4, num_warmup_steps=steps // 10, ema_decay=0.99,
        checkpoint_every_s=3600.0, mixed_precision=False,
    )  # fmt: skip
    settings = TrainSettings(network=NETWORK, preprocess=PreprocessSettings(image_size=SIZE), classifier=optimizer)
    with tempfile.TemporaryDirectory() as folder:
        task = ClassifierTask(classifier.requires_grad_(True), build_scheduler(), data, settings)
        TrainingLoop(task, optimizer, Path(folder), "simulation", seed, torch.device("cpu")).run(progress=False)


def of_patients(data: TaggedSlices, patients: list[int]) -> TaggedSlices:
    """The slices of some volumes."""
    rows = torch.isin(data.volume_index, torch.tensor(patients))
    return replace(
        data, slices=data.slices[rows], states=data.states[rows], positions=data.positions[rows], volume_index=data.volume_index[rows]
    )


def scores_of(classifier: NoiseConditionalClassifier, data: TaggedSlices, volume: int) -> Any:
    """`(S,)` probabilities of a volume's slices, as the gate sees them."""
    logits = slice_logits(classifier, data.slices[data.volume_index == volume]).numpy()
    return slice_scores(logits[:, 0], 1.0, SMOOTHING)


def judge(classifier: NoiseConditionalClassifier, data: TaggedSlices) -> float:
    """Tag AUC over all slices of the validation patients."""
    scores = torch.cat([torch.from_numpy(scores_of(classifier, data, volume)) for volume in range(len(data.image_ids))])
    return round(tag_auc(scores.tolist(), (data.states[:, 0] == PRESENT).tolist()), 4)


def _load(data: Path, split: str) -> TaggedSlices:
    tags = read_tags(data / "lgg" / "slices.csv", {"tumor": "has_lesion"}, split)
    paths = find_images(data / "lgg" / "images", list(tags.tags), "{image}_flair.nii.gz")
    return load_tagged_slices(paths, tags, PreprocessSettings(image_size=SIZE))


if __name__ == "__main__":
    raise SystemExit(main())

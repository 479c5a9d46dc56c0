"""Which parts of CLDF matter: `python -m benchmarks.cldf_ablations --data <folder>`.

Every variant is trained with the same steps and seed on the tags of the `lgg` training patients, in one round, and looked at on the
validation patients: the tag AUC of its map (the criterion that may choose) beside slice Dice with the tags given (which may not).
Finished variants are kept in the run folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from app_cdm.cldf.decode import decoder_maps
from app_cdm.cldf.features import FeatureSettings
from app_cdm.cldf.seeds import SeedSettings
from app_cdm.cldf.settings import CLDFSettings
from app_cdm.cldf.train import DecoderTraining, find_votes
from app_cdm.cldf.votes import inputs_of, seeds_of_class, thorough
from app_cdm.data.dataset import TaggedSlices, load_tagged_slices
from app_cdm.data.tags import read_tags
from app_cdm.data.writing import write_atomically
from app_cdm.metrics.ranking import tag_auc
from app_cdm.pipeline import CDMPipeline
from app_cdm.saliency.base import SaliencyModel
from app_cdm.training.run import TaggedFolder
from app_cdm.training.settings import TrainSettings
from app_cdm.training.stage import Stage
from benchmarks.reference_slices import reference_slices
from benchmarks.shipped import MODEL, runs_of_model

CAM = {"cam_foreground": 0.5, "cam_background": 0.15}
GRADIENT = {"gradient_foreground": 0.8, "gradient_background": 0.8}

FEATURES = "features_0"  # in the folder of a variant, see `DecoderTraining`

Change = Callable[[CLDFSettings], CLDFSettings]


def _seeds(**changes: object) -> Change:
    return lambda settings: dataclasses.replace(settings, seeds=SeedSettings(**changes))  # type: ignore[arg-type]


def _features(null: tuple[float, ...], contrast: tuple[float, ...] = (), blocks: tuple[int, ...] = (0, 1, 2)) -> Change:
    return lambda settings: dataclasses.replace(settings, features=FeatureSettings(null, contrast, blocks))


VARIANTS: dict[str, Change] = {
    "default": lambda settings: settings,
    "seeds: activation map alone": _seeds(use_gradient=False, use_saliency=False, **CAM),
    "seeds: gradient map alone": _seeds(use_cam=False, use_saliency=False, gradient_foreground=0.9, gradient_background=0.6),
    "seeds: activation and gradient": _seeds(use_saliency=False, **CAM, **GRADIENT),
    "seeds: diffusion map alone": _seeds(use_cam=False, use_gradient=False),
    "4 dimensions": lambda settings: settings.replace(embedding_dim=4),
    "64 dimensions": lambda settings: settings.replace(embedding_dim=64),
    "one level, sigma .15": _features((0.15,)),
    "one level, sigma .3": _features((0.3,)),
    "one level, sigma .45": _features((0.45,)),
    "null .3 and the contrast of conditions at .5": _features((0.3,), (0.5,)),
    "coarsest block": _features((0.15, 0.3, 0.45), blocks=(0,)),
    "two coarser blocks": _features((0.15, 0.3, 0.45), blocks=(0, 1)),
    "finest block": _features((0.15, 0.3, 0.45), blocks=(2,)),
    "random features": lambda settings: settings.replace(random_features=True),
}


def main() -> int:
    """Trains and scores what is not there yet, and prints the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds lgg/")
    parser.add_argument("--run", type=Path, default=runs_of_model() / "cldf_ablations")
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps a variant")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS))
    options = parser.parse_args()
    pipeline = CDMPipeline.from_pretrained(MODEL)
    model = pipeline.saliency_model()
    for name in options.only or VARIANTS:
        path = options.run / f"{list(VARIANTS).index(name):02d}.json"
        asked = {"variant": name, "steps": options.steps}
        if not path.exists() or not asked.items() <= json.loads(path.read_text()).items():
            write_atomically(path, json.dumps(asked | _run(pipeline, model, name, options)).encode())
        print(ablation_line(json.loads(path.read_text())), flush=True)
    for passed in options.run.glob("features*"):
        shutil.rmtree(passed)
    return 0


def _load(pipeline: CDMPipeline, data: Path, split: str) -> TaggedSlices:
    folder = TaggedFolder(data / "lgg/images", read_tags(data / "lgg/slices.csv", {"tumor": "has_lesion"}, split), "{image}_flair.nii.gz")
    return load_tagged_slices(folder.paths, folder.tags, pipeline.description.preprocess)


def _run(pipeline: CDMPipeline, model: SaliencyModel, name: str, options: argparse.Namespace) -> dict[str, float]:
    base = CLDFSettings(num_rounds=1)
    settings = VARIANTS[name](base.replace(optimizer=base.optimizer.replace(num_steps=options.steps)))
    saliency, train_data = thorough(pipeline.settings_for("cdm_saliency").saliency), _load(pipeline, options.data, "train")
    device = torch.device("cpu")
    votes = find_votes(model, train_data, saliency, Stage(options.run / "votes_train", "train", 0, device))
    number = list(VARIANTS).index(name)
    stage = Stage(options.run / f"variant_{number:02d}_{options.steps}_steps", f"{name} {options.steps}", 0, device)
    passed = options.run / ("features_random" if settings.random_features else "features")
    if passed.exists() and not (stage.folder / FEATURES).exists():
        stage.folder.mkdir(parents=True, exist_ok=True)
        passed.rename(stage.folder / FEATURES)  # those of other settings are made anew
    training = DecoderTraining(model, train_data, votes, saliency, settings, TrainSettings().network, stage)
    decoder, own = training.learn(), training.model
    _pass_on(passed, stage.folder / FEATURES)
    data = _load(pipeline, options.data, "val")
    index = torch.arange(len(data.slices))
    maps = torch.cat([decoder_maps(own, decoder, inputs_of(data, part, 0)) for part in index.split(16)]).numpy()
    reference = reference_slices(options.data / "lgg", data, pipeline.description.preprocess, "{image}_flair.nii.gz")
    present = data.states[:, 0].numpy() == 1
    top = np.sort(maps.reshape(len(maps), -1), axis=1)[:, -40:].mean(axis=1)
    dice = [_dice(maps[i] > 0.5, reference[i]) for i in np.flatnonzero(present)]
    held_out = find_votes(model, data, saliency, Stage(options.run / "votes_val", "val", 0, device))[0]
    seeds, truth = seeds_of_class(data, 0, held_out, saliency, settings.seeds).numpy(), reference[present]
    return {
        "tag_auc": tag_auc(top.tolist(), present.tolist()),
        "slice_dice": float(np.nanmean(dice)),
        "seed_foreground_precision": float(truth[seeds == 1].mean()),
        "seed_foreground_recall": float((seeds[truth] == 1).mean()),
        "seed_background_precision": float(1 - truth[seeds == 0].mean()),
    }


def _pass_on(passed: Path, features: Path) -> None:
    """Leaves the features of a variant to the next one, which often needs the same."""
    if features.exists():  # not where the decoder was finished by an earlier call
        shutil.rmtree(passed, ignore_errors=True)
        features.rename(passed)


def _dice(mask: np.ndarray, truth: np.ndarray) -> float:
    total = mask.sum() + truth.sum()
    return float(2 * (mask & truth).sum() / total) if total else float("nan")


def ablation_line(result: dict[str, Any]) -> str:
    """One row of the table."""
    names = ("tag_auc", "slice_dice", "seed_foreground_precision", "seed_foreground_recall", "seed_background_precision")
    return f"| {result['variant']} | " + " | ".join(f"{result[name]:.3f}" for name in names) + " |"


if __name__ == "__main__":
    raise SystemExit(main())

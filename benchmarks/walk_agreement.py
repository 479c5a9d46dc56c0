"""What chose the stiffness of the random walk: `python -m benchmarks.walk_agreement --data <folder>`.

The maps of the diffusion model, the pixel decoder and the student err for different reasons. What a refinement adds to all three can
be noise, and then they agree less, or the border that is there, and then they agree more. The Dice between each two of them after the
walk, on the slices of the validation patients that are tagged positive, is therefore a criterion that reads tags alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import torch

from app_cdm.cldf.train import find_votes
from app_cdm.data.dataset import load_tagged_slices
from app_cdm.data.tags import read_tags
from app_cdm.metrics.overlap import dice
from app_cdm.pipeline import CDMPipeline
from app_cdm.saliency.base import SaliencyModel
from app_cdm.training.run import TaggedFolder
from app_cdm.training.stage import Stage
from app_cdm.training.teacher import decoder_probabilities, saliency_probabilities, student_probabilities, teach

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "model" / "cdm_lgg_flair"
STIFFNESSES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
PAIRS = tuple(itertools.combinations(("diffusion", "decoder", "student"), 2))


def main() -> int:
    """Prints the table as Markdown and keeps it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds lgg/")
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "walk_agreement")
    options = parser.parse_args()
    result = _agreements(options.data / "lgg", options.run)
    (options.run / "agreement.json").write_text(json.dumps(result, indent=1))
    print("\n".join(agreement_table(result)))
    return 0


def _agreements(dataset: Path, run: Path) -> dict[str, dict[str, float]]:
    """Stiffness -> pair of opinions -> mean Dice of their masks over slices."""
    pipeline = CDMPipeline.from_pretrained(MODEL)
    if pipeline.pixel_decoder is None or pipeline.student is None:
        raise SystemExit(f"{MODEL.name} has no decoder or no student: train the stages cldf and student")
    model = SaliencyModel(
        pipeline.unet, pipeline.condition_embedding, pipeline.classifier, pipeline.scheduler, pipeline.description.patch_size
    )
    folder = TaggedFolder(dataset / "images", read_tags(dataset / "slices.csv", {"tumor": "has_lesion"}, "val"), "{image}_flair.nii.gz")
    data = load_tagged_slices(folder.paths, folder.tags, pipeline.description.preprocess)
    saliency = pipeline.settings_for("cdm_saliency").saliency
    version = pipeline.with_networks(pixel_decoder=None, student=None).model_version
    votes = find_votes(model, data, saliency, Stage(run / f"votes_{version}", version, 0, torch.device("cpu")))[0]
    opinions = {
        "diffusion": saliency_probabilities(data, votes, saliency, 1.0),
        "decoder": decoder_probabilities(model, pipeline.pixel_decoder, data, votes.index, 0),
        "student": student_probabilities(pipeline.student, data, votes.index, 0),
    }
    found = {}
    for stiffness in STIFFNESSES:
        masks = {name: teach(data, votes.index, [own], stiffness=stiffness).numpy() > 0.5 for name, own in opinions.items()}
        found[f"{stiffness:g}"] = {f"{one}-{other}": _mean_dice(masks[one], masks[other]) for one, other in PAIRS}
    return found


def _mean_dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.nanmean([dice(a, b) for a, b in zip(one, other, strict=True) if a.any() or b.any()]))


def agreement_table(result: dict[str, dict[str, float]]) -> list[str]:
    """Lines of a Markdown table."""
    pairs = list(next(iter(result.values())))
    lines = [f"| stiffness | {' | '.join(pairs)} | mean |", "|" + "---|" * (len(pairs) + 2)]
    for stiffness, values in result.items():
        mean = sum(values.values()) / len(values)
        lines.append(f"| {stiffness} | {' | '.join(f'{values[pair]:.3f}' for pair in pairs)} | {mean:.3f} |")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())

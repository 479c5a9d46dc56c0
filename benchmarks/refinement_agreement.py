"""What chose the refinement of masks: `python -m benchmarks.refinement_agreement --data <folder>`.

The maps of the diffusion model, the pixel decoder and the student err for different reasons. What a refinement adds to all three can
be noise, and then they agree less, or the border that is there, and then they agree more. The Dice between each two of them after the
refinement, on the slices of the validation patients that are tagged positive, is therefore a criterion that reads tags alone. The mean
size of the masks is printed beside it, because large masks agree more easily.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from app_cdm.cldf.train import find_votes
from app_cdm.cldf.votes import thorough
from app_cdm.data.dataset import load_tagged_slices
from app_cdm.data.tags import read_tags
from app_cdm.metrics.overlap import dice
from app_cdm.pipeline import CDMPipeline
from app_cdm.segmentation.appearance import appearance_posterior
from app_cdm.segmentation.refinement import follow_image, random_walk
from app_cdm.training.run import TaggedFolder
from app_cdm.training.stage import Stage
from app_cdm.training.teacher import Boundary, decoder_probabilities, saliency_probabilities, student_probabilities, teach
from benchmarks.shipped import MODEL, runs_of_model

STIFFNESSES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
PRIOR_BLURS = tuple(pixels / 64 for pixels in (1.5, 2.0, 2.5, 3.0, 3.5))
PRIOR_WEIGHTS = (0.3, 0.5, 1.0)
REACHES = (4 / 64, 6 / 64)
LEAST_KEPT = (0.25, 0.5, 0.75, 1.0)
SIZE = "mean pixels"
PAIRS = tuple(itertools.combinations(("diffusion", "decoder", "student"), 2))


def main() -> int:
    """Prints the table as Markdown and keeps it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds lgg/")
    parser.add_argument("--run", type=Path, default=runs_of_model() / "refinement_agreement")
    options = parser.parse_args()
    result = _agreements(options.data / "lgg", options.run)
    (options.run / "agreement.json").write_text(json.dumps(result, indent=1))
    print("\n".join(agreement_table(result)))
    return 0


def _agreements(dataset: Path, run: Path) -> dict[str, dict[str, float]]:
    """Refinement -> pair of opinions -> mean Dice of their masks over slices; and the mean size of a mask in pixels."""
    pipeline = CDMPipeline.from_pretrained(MODEL)
    if pipeline.pixel_decoder is None or pipeline.student is None:
        raise SystemExit(f"{MODEL.name} has no decoder or no student: train the stages cldf and student")
    model = pipeline.saliency_model()
    folder = TaggedFolder(dataset / "images", read_tags(dataset / "slices.csv", {"tumor": "has_lesion"}, "val"), "{image}_flair.nii.gz")
    data = load_tagged_slices(folder.paths, folder.tags, pipeline.description.preprocess)
    saliency = thorough(pipeline.settings_for("cdm_saliency").saliency)
    version = pipeline.with_networks(pixel_decoder=None, student=None).model_version
    votes = find_votes(model, data, saliency, Stage(run / f"votes_{version}", version, 0, torch.device("cpu")))[0]
    opinions = {
        "diffusion": saliency_probabilities(data, votes, saliency, 1.0),
        "decoder": decoder_probabilities(model, pipeline.pixel_decoder, data, votes.index, 0),
        "student": student_probabilities(pipeline.student, data, votes.index, 0),
    }
    found = {}
    for name, boundary in _boundaries():
        masks = {opinion: teach(data, votes.index, [own], boundary=boundary).numpy() > 0.5 for opinion, own in opinions.items()}
        agreed = {f"{one}-{other}": _mean_dice(masks[one], masks[other]) for one, other in PAIRS}
        found[name] = agreed | {SIZE: float(np.mean([mask.sum((1, 2)).mean() for mask in masks.values()]))}
    return found


def _boundaries() -> Iterator[tuple[str, Boundary]]:
    """Name and function of every refinement that is compared."""
    yield "none", lambda probabilities, slices, places: probabilities
    for stiffness in STIFFNESSES:
        yield f"walk, stiffness {stiffness:g}", partial(_walk, stiffness=stiffness)
    yield "**in use:** appearance, weight 0.5, blur 2.5 px, reach 4 px, and nothing new", follow_image
    for least_kept in LEAST_KEPT:
        yield (
            f"the same, or the walk alone where less than {least_kept:g} of the pixels would be left",
            partial(_guarded, least_kept=least_kept),
        )
    for weight, blur, reach in itertools.product(PRIOR_WEIGHTS, PRIOR_BLURS, REACHES):
        yield (
            f"appearance, weight {weight:g}, blur {64 * blur:g} px, reach {64 * reach:g} px",
            partial(_appearance, prior_weight=weight, prior_blur=blur, reach=reach),
        )


def _walk(probabilities: np.ndarray, slices: np.ndarray, places: np.ndarray, stiffness: float) -> np.ndarray:
    """The walk alone."""
    return random_walk(probabilities, slices, stiffness=stiffness, places=places)


def _guarded(probabilities: np.ndarray, slices: np.ndarray, places: np.ndarray, least_kept: float) -> np.ndarray:
    """`follow_image`, but for targets that it would shrink to the part of them that stands out most."""
    moved = follow_image(probabilities, slices, places)
    is_shrunk = np.count_nonzero(moved > 0.5) < least_kept * np.count_nonzero(probabilities > 0.5)
    return random_walk(probabilities, slices, places=places) if is_shrunk else moved


def _appearance(probabilities: np.ndarray, slices: np.ndarray, places: np.ndarray, **settings: float) -> np.ndarray:
    """`follow_image` with other settings, and with what appears anew."""
    return random_walk(appearance_posterior(probabilities, slices, **settings), slices, places=places)


def _mean_dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.nanmean([dice(a, b) for a, b in zip(one, other, strict=True) if a.any() or b.any()]))


def agreement_table(result: dict[str, dict[str, float]]) -> list[str]:
    """Lines of a Markdown table."""
    pairs = [f"{one}-{other}" for one, other in PAIRS]
    lines = [f"| refinement | {' | '.join(pairs)} | mean | {SIZE} |", "|" + "---|" * (len(pairs) + 3)]
    for name, values in result.items():
        mean = sum(values[pair] for pair in pairs) / len(pairs)
        lines.append(f"| {name} | {' | '.join(f'{values[pair]:.3f}' for pair in pairs)} | {mean:.3f} | {values[SIZE]:.0f} |")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())

"""What each method costs a slice: network evaluations and multiply-adds, counted, not timed: `python -m benchmarks.cost`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from app_cdm.cldf.features import FeatureSettings, extract_features
from app_cdm.pipeline import CDMPipeline
from app_cdm.saliency.base import SaliencyInputs, SaliencyModel
from app_cdm.saliency.combine import METHODS

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = "reference"
# AnoFPDM averages over many noise levels; with the single draw of `cdm_saliency` it would be a weakened baseline.
FORWARD_PROCESS = {"mode": "forward_process", "num_draws": 2}


def main() -> int:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "model" / "cdm_lgg_flair")
    print("\n".join(cost_table(CDMPipeline.from_pretrained(parser.parse_args().model))))
    return 0


def cost_table(pipeline: CDMPipeline) -> list[str]:
    """Lines of the table: a positive slice of one class, the gate left out, because all methods share it."""
    found = costs(pipeline)
    published = found[PUBLISHED][1]
    lines = ["| method | U-Net evaluations a slice | multiply-adds a slice (10^9) | share of CDM as published |", "|---|---|---|---|"]
    for name, (evaluations, multiply_adds) in found.items():
        share = f"1 / {published / multiply_adds:.0f}" if 0 < multiply_adds <= published / 2 else f"{multiply_adds / published:.2f}"
        lines.append(f"| `{name}` | {evaluations} | {multiply_adds / 1e9:.3f} | {share} |")
    return lines


def costs(pipeline: CDMPipeline) -> dict[str, tuple[int, float]]:
    """Method -> U-Net evaluations and multiply-adds of one positive slice of one class, without the gate."""
    return {name: _cost(pipeline, name) for name in ["student", "cldf", *METHODS] if name in METHODS or name in pipeline.methods}


def _cost(pipeline: CDMPipeline, name: str) -> tuple[int, float]:
    """U-Net evaluations and multiply-adds of one slice, all networks; a backward pass counts as two forward ones."""
    size = pipeline.description.preprocess.image_size
    slices = torch.zeros(1, 1, size, size)
    if name == "student":
        neighbours = pipeline.student.config.num_neighbours
        return 0, _multiply_adds(pipeline.student, torch.zeros(1, 2 * neighbours + 1, size, size))
    model = SaliencyModel(
        pipeline.unet, pipeline.condition_embedding, pipeline.classifier, pipeline.scheduler, pipeline.description.patch_size
    )
    inputs = SaliencyInputs(slices, torch.tensor([0.5]), (0,), 0)
    classified: list[int] = []
    handle = pipeline.classifier.norm_out.register_forward_hook(
        lambda _module, given, _output: classified.append(len(given[0]) * (3 if torch.is_grad_enabled() else 1))
    )
    extra = 0.0
    if name == "cldf":
        features = extract_features(model, inputs, FeatureSettings.from_dict(dict(pipeline.pixel_decoder.config.features)))
        extra = _multiply_adds(pipeline.pixel_decoder, features)
    else:
        with torch.no_grad():
            own = FORWARD_PROCESS if name == FORWARD_PROCESS["mode"] else {"mode": name}
            METHODS[name](model, inputs, pipeline.settings_for("cdm_saliency").saliency.replace(**own))
    handle.remove()
    timesteps, patch = torch.zeros(1, dtype=torch.long), pipeline.description.patch_size
    embedding = pipeline.condition_embedding(torch.zeros(1, len(pipeline.class_names), 3), torch.tensor([0.5]))
    unet = _multiply_adds(pipeline.unet, torch.zeros(1, patch**2, size // patch, size // patch), timesteps, embedding)
    classifier = _multiply_adds(pipeline.classifier, slices, timesteps)
    return model.counter.images, extra + model.counter.images * unet + sum(classified) * classifier


def _multiply_adds(network: torch.nn.Module, *inputs: object) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    return float(counter.get_total_flops()) / 2


if __name__ == "__main__":
    raise SystemExit(main())

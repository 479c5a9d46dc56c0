"""`train`: a classifier, a diffusion model, a pixel decoder and a student from image-level tags."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import torch

from app_cdm.commands.options import add_device, add_tagged_folders, choose_device, tagged_folders
from app_cdm.networks.presets import PRESETS
from app_cdm.pipeline import CDMPipeline
from app_cdm.training.run import settings_as_in, train
from app_cdm.training.settings import TrainSettings
from app_cdm.training.stage import FIRST_STAGES, LATER_STAGES
from app_cdm.training.team import join_team

STAGES = (*FIRST_STAGES, *LATER_STAGES)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    add_tagged_folders(parser)
    parser.add_argument("--preset", choices=sorted(PRESETS), help="size of the networks (default: that of --initial-model, else tiny)")
    parser.add_argument("--settings", type=Path, help="JSON of TrainSettings; options given here override it")
    parser.add_argument("--classifier-steps", type=int, help="optimizer steps of the classifier")
    parser.add_argument("--diffusion-steps", type=int, help="optimizer steps of the diffusion model")
    parser.add_argument("--cldf-steps", type=int, help="optimizer steps of the pixel decoder")
    parser.add_argument("--student-steps", type=int, help="optimizer steps of each round of the student")
    parser.add_argument(
        "--stages",
        nargs="+",
        choices=STAGES,
        default=list(FIRST_STAGES),
        help="what to train; the rest comes from --initial-model as it is (default: classifier diffusion)",
    )
    parser.add_argument("--seed", type=int, help="of everything random")
    parser.add_argument("--initial-model", type=Path, help="model folder to start from (fine-tuning)")
    add_device(parser)
    parser.add_argument("--output", type=Path, required=True, help="run folder; an interrupted run in it is resumed")
    parser.add_argument("--publish", type=Path, help="model folder to replace with the result, in half the size (float16)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Trains, and prints where the model is."""
    team, device = join_team(choose_device(options.device))
    folder = train(
        tagged_folders(options),
        _settings(options),
        options.output,
        device,
        initial_model=options.initial_model,
        stages=options.stages,
        team=team,
    )
    if not team.is_main:
        return 0
    if options.publish:
        CDMPipeline.from_pretrained(folder).save_pretrained(options.publish, torch.float16)
        folder = options.publish
    print(json.dumps({"model": str(folder)}))
    return 0


def _settings(options: argparse.Namespace) -> TrainSettings:
    given = TrainSettings.load(options.settings) if options.settings else TrainSettings()
    network = PRESETS[options.preset] if options.preset else given.network
    preprocess = given.preprocess.replace(image_size=network.image_size)
    settings = dataclasses.replace(given, preset=options.preset or given.preset, network=network, preprocess=preprocess)
    if options.initial_model and not options.preset and not options.settings:
        settings = settings_as_in(CDMPipeline.from_pretrained(options.initial_model), settings)
    for name in ("classifier", "diffusion"):
        steps = getattr(options, f"{name}_steps")
        if steps is not None:
            settings = dataclasses.replace(settings, **{name: getattr(settings, name).replace(num_steps=steps)})
    for name in ("cldf", "student"):
        steps, own = getattr(options, f"{name}_steps"), getattr(settings, name)
        if steps is not None:
            settings = dataclasses.replace(settings, **{name: dataclasses.replace(own, optimizer=own.optimizer.replace(num_steps=steps))})
    return settings if options.seed is None else dataclasses.replace(settings, seed=options.seed)

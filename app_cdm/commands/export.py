"""`export`: the student of a model as a MONAI bundle."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from diffusers.utils.logging import disable_progress_bar

from app_cdm.bundle.export import export_bundle
from app_cdm.pipeline import CDMPipeline


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("--model", type=Path, required=True, help="model folder with a trained student")
    parser.add_argument("--output", type=Path, required=True, help="bundle folder; an older bundle there is replaced")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints where the bundle is and which weights it holds."""
    disable_progress_bar()
    pipeline = CDMPipeline.from_pretrained(options.model)
    export_bundle(pipeline, options.output, find_license(options.model))
    print(json.dumps({"bundle": str(options.output), "model_version": pipeline.model_version}))
    return 0


def find_license(model: Path) -> Path | None:
    """`LICENSE.md` of the weights, in the model folder or beside it."""
    candidates = (model / "LICENSE.md", model.resolve().parent / "LICENSE.md")
    return next((path for path in candidates if path.is_file()), None)

"""`calibrate`: choose what tags of held-out images can choose, and write the model that ships."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from tqdm import tqdm

from app_cdm.calibration import DEFAULT_MODES, calibrate
from app_cdm.commands.options import add_model, add_tagged_folders, load_model, tagged_folders
from app_cdm.saliency.candidates import CANDIDATES

DTYPES = {"float32": torch.float32, "float16": torch.float16}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    add_model(parser, with_method=False)
    parser.set_defaults(method="cdm_saliency")  # whose settings are chosen; the others share its gate
    add_tagged_folders(parser)
    parser.add_argument("--output", type=Path, required=True, help="folder of the calibrated model")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float16", help="precision of the weights on disk")
    parser.add_argument(
        "--modes",
        nargs="*",
        choices=[*CANDIDATES, "all"],
        default=list(DEFAULT_MODES),
        help=f"modes whose noise level or guidance scale is chosen; default {' '.join(DEFAULT_MODES)}, all takes several times as long, "
        "nothing after it leaves them all as they are",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints what was chosen and why."""
    pipeline, settings = load_model(options)
    folders = tagged_folders(options)
    if len(folders) != 1:
        raise ValueError("calibrate takes one folder of held-out images")
    modes = list(CANDIDATES) if "all" in options.modes else options.modes
    with tqdm(total=100, desc="calibrate", unit="%") as bar:
        calibration = calibrate(
            pipeline, folders[0].paths, folders[0].tags, settings, modes, lambda share: bar.update(round(share * 100) - bar.n)
        )
    calibration.of(pipeline).save_pretrained(options.output, DTYPES[options.dtype])
    print(json.dumps({"model": str(options.output), **calibration.record}, indent=1))
    return 0

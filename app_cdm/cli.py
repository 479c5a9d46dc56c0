"""Command line: `python -m app_cdm train | calibrate | infer | evaluate | export`."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence

EPILOG = "Research use only, not a medical device."
COMMANDS = {  # modules of `app_cdm.commands`
    "train": "train a model from image-level tags",
    "calibrate": "choose gate and noise levels on tags of held-out images, and write the model",
    "infer": "segment images: files, folders, DICOM series, CSV tables or a query of a DICOMweb server",
    "evaluate": "compare masks with expert masks of a validation or test split",
    "export": "write the student of a model as a MONAI bundle, which runs without this package",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code (0 done, 1 failed, 2 wrong usage, 130 interrupted, 143 told to end)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    asked = next((item for item in arguments if not item.startswith("-")), None)
    parser = argparse.ArgumentParser(prog="python -m app_cdm", description="Segmentation from image-level tags.", epilog=EPILOG)
    parser.add_argument("--verbose", action="store_true", help="log what happens")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text)
        if name == asked:  # the others are not imported: that takes seconds
            importlib.import_module(f"app_cdm.commands.{name}").add_options(command)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        return int(options.run(options))
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        exception = ", without --overwrite," if getattr(options, "overwrite", False) else ""
        print(f"interrupted; run the same command again{exception} to continue", file=sys.stderr)
        return 130

"""Command line: `python -m app_cdm train | calibrate | infer | evaluate | export`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from app_cdm.commands import calibrate, evaluate, export, infer, train

EPILOG = "Research use only, not a medical device."


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code (0 done, 1 failed, 2 wrong usage, 130 interrupted, 143 told to end)."""
    parser = argparse.ArgumentParser(prog="python -m app_cdm", description="Segmentation from image-level tags.", epilog=EPILOG)
    parser.add_argument("--verbose", action="store_true", help="log what happens")
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (train, calibrate, infer, evaluate, export):
        command.add_parser(commands)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        return int(options.run(options))
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        return 130

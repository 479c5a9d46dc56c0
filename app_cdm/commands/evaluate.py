"""`evaluate`: masks against expert masks of a validation or test split."""

from __future__ import annotations

import argparse
import typing
from pathlib import Path

from tqdm import tqdm

from app_cdm.commands.options import add_model, load_model
from app_cdm.evaluation import EvaluationProtocol, EvaluationSettings, evaluate, format_report


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    add_model(parser)
    parser.add_argument("--dataset", type=Path, required=True, help="folder with images/, masks/ and slices.csv or images.csv")
    parser.add_argument("--split", default="test", help="never train; default test")
    parser.add_argument("--protocol", choices=typing.get_args(EvaluationProtocol), default="all_slices")
    parser.add_argument("--class", dest="class_name", default="", help="class, where the model has several")
    parser.add_argument(
        "--reference-values",
        type=int,
        nargs="+",
        default=[],
        metavar="VALUE",
        help="values of the reference masks that are the class; default any above 0, where masks or model know one class only",
    )
    parser.add_argument("--column", default="has_lesion", help="0/1 tag column of the class")
    parser.add_argument("--modality", default="", help="part of image names after the id, such as flair")
    parser.add_argument("--real-geometry", action="store_true", help="spacing is measured, not nominal: give distances in mm too")
    parser.add_argument("--limit", type=int, default=0, help="at most this many images")
    parser.add_argument("--output", type=Path, help="write the report as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints a Markdown table; returns 1 if any image failed."""
    pipeline, settings = load_model(options)
    evaluation = EvaluationSettings(
        protocol=options.protocol,
        split=options.split,
        class_name=options.class_name,
        column=options.column,
        modality=options.modality,
        reference_values=tuple(options.reference_values),
        is_geometry_real=options.real_geometry,
        limit=options.limit,
    )
    with tqdm(total=100, desc="evaluate", unit="%") as bar:
        report = evaluate(pipeline, options.dataset, evaluation, settings, lambda share: bar.update(round(share * 100) - bar.n))
    if options.output:
        report.save(options.output)
    print(format_report(report))
    return 1 if report.num_errors else 0

"""Measures what is not measured yet and writes docs/performance.md: `python -m benchmarks.speed --data <folder>`.

Parts that are not in the run folder keep the text that they have in the document.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from benchmarks.document import read_sections, write_sections
from benchmarks.speed import paper
from benchmarks.speed.part import ROOT, Options, Part, machine

PARTS = {
    "floor": "The floor",
    "inference": "Inference",
    "server": "The server around the network",
    "training": "Training",
    "cohort": "A cohort overnight",
    "growth": "What grows, and with what",
    "pacs": "A large PACS",
}
INTRODUCTION = """# Performance

Written by `make benchmark-speed`; a part is measured again with `python -m benchmarks.speed --data <folder> --fresh PART`. Ratios are
of things measured side by side, in turns, in one run; seconds are of the machine that each part names. What only a GPU does, such as going
on with smaller batches when its memory runs out, is tested on the CPU and not measured. Research use only, not a medical device."""


def main() -> int:
    """Runs the parts, each kept as it ends, and writes the document."""
    options = _parser().parse_args()
    options.run.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if options.device == "cuda" or (options.device == "auto" and torch.cuda.is_available()) else "cpu")
    for name in options.parts:
        file = options.run / f"{name}.json"
        if file.exists() and name not in options.fresh:
            continue
        print(f"== {name}", flush=True)
        folder = options.run / name
        folder.mkdir(exist_ok=True)
        result = _load(name).measure(Options(options.data, options.model, folder, device))
        temporary = file.with_suffix(".part")
        temporary.write_text(json.dumps({"machine": machine(), **result}, indent=1))
        os.replace(temporary, file)
    write_document(options.run, options.output)
    return 0


def write_document(run: Path, output: Path) -> None:
    """Writes the document from the results there are; a part without one keeps its text, or says that it was not measured."""
    results: dict[str, dict[str, Any]] = {
        name: json.loads((run / f"{name}.json").read_text()) for name in PARTS if (run / f"{name}.json").exists()
    }
    kept = read_sections(output)
    sections: dict[str, Sequence[str]] = {}
    for name, heading in PARTS.items():
        sections[heading] = () if heading in kept else ["Not measured yet: `make benchmark-speed`."]
        if name in results:
            sections[heading] = [f"On {results[name]['machine']}.", "", *_load(name).describe(results[name])]
    sections["On paper: a hospital and a national archive"] = paper.describe(results)
    write_sections(output, INTRODUCTION.splitlines(), sections, kept)


def _load(name: str) -> Part:
    return cast(Part, importlib.import_module(f"benchmarks.speed.{name}"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds lgg/ and dicom/")
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS), help="only these (default: all)")
    parser.add_argument("--fresh", nargs="*", choices=list(PARTS), default=[], help="measure these again")
    parser.add_argument("--model", type=Path, default=ROOT / "model" / "cdm_lgg_flair", help="model folder")
    parser.add_argument("--device", default="auto", choices=["auto", "cuda", "cpu"])
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "speed", help="folder for results as JSON")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "performance.md", help="document to write")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())

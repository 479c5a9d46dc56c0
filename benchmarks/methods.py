"""Every figure of docs/benchmark.md: `python -m benchmarks.methods --data <folder> --scorer <score_rest.py>`.

Starts the real label server, has it scored from outside over REST (the gate decides which slices are positive), and
evaluates the same settings with the slice tags given, as the papers do. Finished rows are kept in the run folder, so an
interrupted benchmark goes on where it stopped; `--fresh` starts over.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app_cdm.evaluation import EvaluationReport
from app_cdm.metrics.report import Figure
from app_cdm.pipeline import CDMPipeline
from benchmarks.cldf_ablations import ablation_line
from benchmarks.cost import NUM_SLICES, REPEATS, SIDE, Footprint, cost_table, footprints, method_names
from benchmarks.document import Section, read_rows, read_sections, write_sections
from benchmarks.losses import loss_table, measure_ceiling
from benchmarks.refinement_agreement import agreement_table
from benchmarks.scorer import METHODS, REFINED, ROWS, Row, score_over_rest
from benchmarks.seeds import seed_table
from benchmarks.shipped import MODEL, ROOT, runs_of_model
from demo.server import LabelServer, find_free_port

EXTERNAL = (
    Row("`student`", "brats_student", method="student"),
    Row("`cldf`", "brats_cldf", method="cldf"),
    Row("`cdm_saliency`", "brats"),
)

FOOTPRINT = "footprint.json"
PROTOCOLS = {"tags": "tag_given", "all": "all_slices"}  # beginning of a result's name -> protocol of `app_cdm evaluate`
EVALUATED = {"tags": (*METHODS, REFINED[0]), "all": METHODS}  # refined maps are scored over REST; here that of the diffusion model alone
OVER_REST = "`lgg` test over REST: the gate decides which slices hold a tumor"
TAGS_GIVEN = "`lgg` test with the tags given: the papers' protocol"
EXTERNAL_DATA = "External data"
ALL_SLICES = "`lgg` test, all slices and whole volumes: the same by the evaluation in this package"
REST_INTRODUCTION = (
    "20 patients, 256 positive and 535 negative slices; scored by an outside client that uploads each volume. Mean with 95 % bootstrap "
    "interval over patients.",
    "",
)
REST_HEADING = (
    "| mode | volume Dice | slice Dice | found | clean negatives | HD95 px | s a case | errors | wrong geometry |",
    "|---|---|---|---|---|---|---|---|---|",
)
TAGS_HEADING = (
    "| mode | slice Dice | slice IoU | HD95 px | positive slices | network evaluations a positive slice |",
    "|---|---|---|---|---|---|",
)
ALL_INTRODUCTION = (
    "The gate decides, as over REST. Means with 95 % bootstrap interval over patients; 20 volumes, 256 positive and 535 negative slices. "
    "A distance to an empty mask is undefined: how many of the 20 volumes and 256 slices have none is in brackets.",
    "",
)
ALL_HEADING = (
    "| mode | volume Dice | volume IoU | volume HD95 px | slice Dice | slice IoU | slice HD95 px | found | clean negatives |",
    "|---|---|---|---|---|---|---|---|---|",
)
EXTERNAL_INTRODUCTION = (
    "Six skull-stripped glioma volumes of BraTS 2015 at 1 mm (high and low grade), another preparation than the training data; whole tumor "
    "against everything above 0.",
    "",
)
EXTERNAL_HEADING = ("| task, no retraining" + REST_HEADING[0].removeprefix("| mode"), REST_HEADING[1])
BEST_TO_WORST = (
    "Volumes of `lgg` test ordered by the Dice of the most accurate method, with every volume below 0.1; FLAIR of TCGA-LGG, CC BY 3.0, "
    "reference masks by Buda et al. 2019.",
    "",
    "![Best, median, worst volume and total failures](figures/lgg_test.png)",
)


def main() -> int:
    """Scores what is not scored yet and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds lgg/ and brats2015_ext6/")
    parser.add_argument("--scorer", type=Path, required=True, help="score_rest.py")
    parser.add_argument("--run", type=Path, default=runs_of_model() / "benchmark", help="folder for results as JSON")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmark.md", help="document to write")
    parser.add_argument("--ablations", type=Path, default=runs_of_model() / "cldf_ablations", help="folder of benchmarks.cldf_ablations")
    parser.add_argument(
        "--refinement", type=Path, default=runs_of_model() / "refinement_agreement", help="folder of benchmarks.refinement_agreement"
    )
    parser.add_argument("--seeds", type=Path, default=runs_of_model() / "seeds", help="folder of benchmarks.seeds")
    parser.add_argument("--fresh", action="store_true", help="score everything again")
    parser.add_argument("--only", nargs="+", choices=[row.key for row in (*ROWS, *EXTERNAL)], help="rows to score now")
    options = parser.parse_args()
    if options.fresh:
        shutil.rmtree(options.run, ignore_errors=True)
    (options.run / "studies").mkdir(parents=True, exist_ok=True)
    rows = [row for row in ROWS if not options.only or row.key in options.only]
    with LabelServer(options.run / "studies", find_free_port(), options.run / "server.log", options.run / "cache") as server:
        for row in rows:
            _score(options, server.url, row, "lgg", "test")
        for row in EXTERNAL:
            if not options.only or row.key in options.only:
                _score(options, server.url, row, "brats2015_ext6", "external_test")
    for kind, evaluated in EVALUATED.items():
        for row in evaluated:
            if row in rows:
                evaluate_row(options, row, kind)
    measure_ceiling(options.data, CDMPipeline.from_pretrained(MODEL), options.run / "ceiling.json")
    if not options.only:
        measure_footprints(options.run)
    write_document(options)
    return 0


def _score(options: argparse.Namespace, url: str, row: Row, dataset: str, split: str) -> None:
    score_over_rest(options.scorer, url, row, options.data / dataset, split, options.run / f"rest_{row.key}.json")


def evaluate_row(options: argparse.Namespace, row: Row, kind: str) -> None:
    """Evaluates one row by one of `PROTOCOLS`, unless its result is there."""
    result = options.run / f"{kind}_{row.key}.json"
    if result.exists():
        return
    command = [sys.executable, "-m", "app_cdm", "evaluate", "--model", str(MODEL), "--dataset", str(options.data / "lgg")]
    command += ["--protocol", PROTOCOLS[kind], "--modality", "flair", "--output", str(result)]
    for name, value in row.parameters.items():
        command += ["--set", f"{name}={json.dumps(value)}"]
    command += ["--method", row.method]
    print(f"== {row.key}, protocol {PROTOCOLS[kind]}", flush=True)
    subprocess.run(command, check=True, cwd=ROOT)


def measure_footprints(run: Path) -> None:
    """Measures milliseconds and memory of every method, unless that is there."""
    result = run / FOOTPRINT
    if result.exists():
        return
    print("== milliseconds and memory", flush=True)
    found = footprints(MODEL, method_names(CDMPipeline.from_pretrained(MODEL)))
    temporary = result.with_suffix(".part")
    temporary.write_text(json.dumps({name: asdict(footprint) for name, footprint in found.items()}))
    os.replace(temporary, result)


def write_document(options: argparse.Namespace) -> None:
    """Writes the document from the results in the run folders; what they lack stays as it was where it is of the same model."""
    run, pipeline = options.run, CDMPipeline.from_pretrained(MODEL)
    training = pipeline.config.training
    chosen = training["calibration"]
    version = f"Model `model/cdm_lgg_flair` {pipeline.model_version}"
    is_of_it = options.output.exists() and version in options.output.read_text()
    kept = read_sections(options.output) if is_of_it else {}
    head = [
        "# Benchmark",
        "",
        f"Written by `make benchmark`. {version}: seed {training['seed']}, trained on the slice tags of "
        f"{training['num_images']} volumes ({training['num_slices']} slices, synthetic studies among them: see the model card); no pixel "
        "mask was used for training or for any setting. "
        f"Settings of the gate and the noise levels were chosen on the tags of {chosen['num_images']} held-out patients. "
        f"Machine: {platform.machine()}, {os.cpu_count()} cores, no GPU.",
    ]
    tables = (
        (OVER_REST, "rest", ROWS, REST_INTRODUCTION, REST_HEADING),
        (ALL_SLICES, "all", EVALUATED["all"], ALL_INTRODUCTION, ALL_HEADING),
        (TAGS_GIVEN, "tags", EVALUATED["tags"], (), TAGS_HEADING),
        (EXTERNAL_DATA, "rest", EXTERNAL, EXTERNAL_INTRODUCTION, EXTERNAL_HEADING),
    )
    scored = {title: [*said, *heading, *_lines(run, kind, rows, kept.get(title, ()))] for title, kind, rows, said, heading in tables}
    sections = {
        OVER_REST: scored[OVER_REST],
        ALL_SLICES: scored[ALL_SLICES],
        TAGS_GIVEN: scored[TAGS_GIVEN],
        "Where the Dice is lost": _losses(run),
        "Other seeds": _seeds(options),
        EXTERNAL_DATA: scored[EXTERNAL_DATA],
        "Cost": _cost(run, pipeline, kept.get("Cost", ())),
        "What matters in CLDF": _ablations(options.ablations),
        "What chose the refinement": _refinement(options.refinement),
        "Best, median, worst": BEST_TO_WORST,
        "What the tags chose": _choices(chosen),
    }
    write_sections(options.output, head, sections, kept)


def _choices(chosen: dict[str, Any]) -> list[str]:
    """What `calibrate` recorded in the model."""
    return [
        "| choice | criterion | candidates |",
        "|---|---|---|",
        *(
            _choice(f"`{name}`", choice, "peak_auc", "tag AUC of the map's peak")
            for name, choice in chosen.items()
            if isinstance(choice, dict) and "peak_auc" in choice
        ),
        _choice("gate smoothing in mm", chosen["gate_smoothing_mm"], "slice_auc", "tag AUC of slice scores"),
        f"| gate threshold: {chosen['gate_threshold']['chosen']:g} | F1 of slices | {chosen['gate_threshold']['slice_f1']:.3f} there |",
    ]


def _cost(run: Path, pipeline: CDMPipeline, kept: Section) -> list[str]:
    """The table of `benchmarks.cost`; nothing where milliseconds were not measured in this run and stand in the document."""
    if kept and not (run / FOOTPRINT).exists():
        return []
    return [
        "Evaluations and multiply-adds are counted, for one positive slice of one class; a backward pass counts as two forward ones. The "
        "gate (a pass of the student, and one of the classifier where it is unsure) is the same for all and not counted. Milliseconds "
        "and memory (the peak above what the process held before) are measured one method after the other, a process each, on a volume "
        f"of {SIDE}x{SIDE}x{NUM_SLICES} whose slices are all positive, gate and refinement included; median of {REPEATS}.",
        "",
        *cost_table(pipeline, _footprints(run)),
    ]


def _footprints(run: Path) -> dict[str, Footprint]:
    file = run / FOOTPRINT
    return {name: Footprint(**found) for name, found in json.loads(file.read_text()).items()} if file.exists() else {}


def _losses(run: Path) -> list[str]:
    """The table of `benchmarks.losses`; nothing where the ceiling has not been measured."""
    table = loss_table(run, ("student", "cldf", "parallel"))
    if not table:
        return []
    return [
        "Against a perfect mask, step by step: resolution, the mask of a slice that holds the target, the gate; `lgg` test, 20 patients.",
        "",
        *table,
    ]


def _seeds(options: argparse.Namespace) -> list[str]:
    """The table of `benchmarks.seeds`; nothing where it has not been run."""
    table = seed_table(options.run, options.seeds)
    if not table:
        return []
    return [
        "Decoder and student trained anew with other seeds on the classifier and diffusion model that ship; `lgg` test over REST. Those "
        "that ship are of earlier code (model card). Held-out tags decide which ships, by the rule of the trainer: another one only where "
        "its gate tells them apart no worse.",
        "",
        *table,
    ]


def _ablations(folder: Path) -> list[str]:
    """The table of `benchmarks.cldf_ablations`; nothing where it has not been run."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    if not results:
        return []
    return [
        "One round of the pixel decoder on the tags of the training patients, looked at on the validation patients; seed 0 and "
        f"{results[0]['steps']} steps for all. The tag AUC of the map may choose; the other columns read pixel masks and explain.",
        "",
        "| variant | tag AUC of the map | slice Dice, tags given | foreground seeds: precision | recall | background seeds: precision |",
        "|---|---|---|---|---|---|",
        *(ablation_line(result) for result in results),
    ]


def _refinement(folder: Path) -> list[str]:
    """The table of `benchmarks.refinement_agreement`; nothing where it has not been run."""
    path = folder / "agreement.json"
    if not path.exists():
        return []
    return [
        "Dice between the masks of two methods after the refinement, on the slices of the validation patients tagged positive; no "
        "reference mask is read. Where methods that err differently agree more after it, it has found a border that is there. It was "
        "chosen with networks that had not been taught by it; the table is that of the networks that ship, which have.",
        "",
        *agreement_table(json.loads(path.read_text())),
    ]


def _choice(what: str, choice: dict[str, Any], key: str, criterion: str) -> str:
    candidates = "; ".join(f"{name}: {area:.3f}" for name, area in choice[key].items())
    return f"| {what}: {choice['chosen']} | {criterion} | {candidates} |"


def _lines(run: Path, kind: str, rows: Sequence[Row], kept: Section) -> list[str]:
    """Lines of the rows that were scored in this run or stand in the document, and which were not."""
    line, stands = {"rest": _rest_line, "all": _all_line, "tags": _tag_line}[kind], read_rows(kept)
    found = {row.key: line(run, row) for row in rows if (run / f"{kind}_{row.key}.json").exists()}
    found = {row.key: found.get(row.key) or stands[row.name] for row in rows if row.key in found or row.name in stands}
    missing = [f"`{row.key}`" for row in rows if row.key not in found]
    note = ["", f"Not scored yet: {', '.join(missing)}; `make benchmark` scores them."] if missing else []
    return [*found.values(), *note]


def _rest_line(run: Path, row: Row) -> str:
    s = json.loads((run / f"rest_{row.key}.json").read_text())["summary"]
    low, high = s["volume_dice_ci95"]
    return (
        f"| {row.name} | {s['volume_dice']:.3f} [{low:.3f}, {high:.3f}] | {s['slice_dice']:.3f} | {s['slice_found']:.3f} | "
        f"{s['clean_negatives']:.3f} | {s['hd95_px']:.1f} | {s['seconds']:.1f} | {s['errors']} | {s['wrong_geometry']} |"
    )


def _all_line(run: Path, row: Row) -> str:
    report = EvaluationReport.from_json((run / f"all_{row.key}.json").read_text())
    cells = []
    for what in ("volume", "slice"):
        cells += [_interval(report.figures[f"{what}_{name}"]) for name in ("dice", "iou")] + [_distance(report.figures[f"{what}_hd95_px"])]
    cells += [_interval(report.figures[name]) for name in ("found_share", "clean_negatives")]
    return f"| {row.name} | {' | '.join(cells)} |"


def _tag_line(run: Path, row: Row) -> str:
    report = EvaluationReport.from_json((run / f"tags_{row.key}.json").read_text())
    dice, iou, hd95 = (report.figures[name] for name in ("slice_dice", "slice_iou", "slice_hd95_px"))
    evaluations = sum(case.network_evaluations for case in report.cases) / max(1, dice.n)
    return f"| {row.name} | {_interval(dice)} | {_interval(iou)} | {_distance(hd95)} | {dice.n} | {evaluations:.0f} |"


def _interval(figure: Figure) -> str:
    return f"{figure.mean:.3f} [{figure.low:.3f}, {figure.high:.3f}]"


def _distance(figure: Figure) -> str:
    return f"{figure.mean:.1f} ({figure.num_undefined} undefined)"


if __name__ == "__main__":
    sys.exit(main())

"""Writes docs/learning-curve.md and its figures from what `benchmarks.loop` and `benchmarks.active` found; runs nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from app_cdm.metrics.bootstrap import bootstrap_mean
from benchmarks.document import read_sections, write_sections

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = "shipped"  # folder of what the model that ships was scored with
SHIPPED_STEPS = 5191
SHIPPED_MINUTES = 90.0  # of `make train`, as its card estimates
COLOURS = {"student": "#1a7f37", "cldf": "#0969da", "cdm_saliency": "#bc4c00"}
MARKERS = "oDsv"
PICTURES = (
    "`busi`: pictures, lesions mostly darker than what surrounds them, the classes benign and malignant, and normal pictures without "
    "either; any lesion is scored against any mask."
)
HEARTS = (
    "`acdc_rv`: left ventricle, myocardium and right ventricle, each present or absent on a slice; four slices in five hold all three, so "
    "the tags hardly say where each is. What comes and goes with them from base to apex is found instead: fat, liver and lung, in the "
    "masks that were looked at. The trainer warns of such classes: it hardly tells their held-out slices apart."
)
ORDERS = {"uncertain": "#1a7f37", "random": "#6e7781"}


def write_document(loop: Path, active: Path, output: Path, figures: Path) -> None:
    """Writes the document from the results there are; what has none keeps its text."""
    found = sorted((_read_point(path) for path in loop.glob("*/result.json")), key=_order)
    points, pictures, hearts = ([point for point in found if point["plan"]["dataset"] == name] for name in ("lgg", "busi", "acdc_rv"))
    curve = [point for point in points if 0 < point["plan"]["budget"]["steps"] < SHIPPED_STEPS]
    longer = [point for point in points if point not in curve]
    simulation = json.loads((active / "result.json").read_text()) if (active / "result.json").exists() else None
    figures.mkdir(parents=True, exist_ok=True)
    head = [
        "# What tags are worth",
        "",
        "Written by `make benchmark-loop` and `make benchmark-active`. Research use only, not a medical device.",
    ]
    sections = {
        "Learning curve: from no model to masks, over REST": _loop_part(curve, loop / SHIPPED, figures),
        "With the budget of the model that ships": _longer_part(longer, loop / SHIPPED),
        "Breast ultrasound through the same loop": _other_part(pictures, PICTURES),
        "Cine MR of the heart, three classes: a stress test": _other_part(hearts, HEARTS),
        "Next Sample by doubt against random order": _active_part(simulation, figures),
    }
    write_sections(output, head, sections, read_sections(output))


def _read_point(path: Path) -> dict[str, Any]:
    """A training with its scores and, as `volume_dice`, task -> patient -> volume Dice of each image."""
    point: dict[str, Any] = json.loads(path.read_text())
    point["volume_dice"] = {task: _volume_dice(path.parent / f"rest_{task.replace(' ', '_')}.json") for task in point["scores"]}
    return point


def _volume_dice(scored: Path) -> dict[str, list[float]]:
    """Patient -> volume Dice of each image, from what the scorer wrote."""
    by_patient: dict[str, list[float]] = {}
    for case in json.loads(scored.read_text())["cases"]:
        by_patient.setdefault(case["patient"], []).append(float("nan") if case["volume_dice"] is None else case["volume_dice"])
    return by_patient


def _order(point: dict[str, Any]) -> tuple[int, int]:
    return point["plan"]["budget"]["steps"], point["plan"]["patients"]


def _loop_part(points: Sequence[dict[str, Any]], shipped: Path, figures: Path) -> list[str]:
    if not points:
        return []
    draw_loop(points, shipped / "rest_student.json", figures / "learning_curve.png")
    first = points[0]
    plan, n = first["plan"], first["scores"][next(iter(first["scores"]))]["cases"]
    return [
        "An empty app, started on copies of the `lgg` train volumes; patients tagged one request an image, as the tagging page does; one "
        "`POST /train/weak_label` from scratch, with the same budget whatever the number of tags: steps of the diffusion model, and of the "
        f"other stages as many or their default number where that is less. {n} test patients scored from outside with `score_rest.py`. "
        f"Seed {plan['seed']}; {first['record']['machine']}. About a fifth of the tagged patients are held out by the trainer. Mean with "
        "95 % bootstrap interval over patients.",
        "",
        "| steps | patients tagged | slices learned from, present | held-out tag score | task | volume Dice | slice Dice | found "
        "| clean negatives |",
        "|---|---|---|---|---|---|---|---|---|",
        *(line for point in points for line in _loop_lines(point)),
        "",
        *_against_fewer(points),
        "Steps of each stage and round (the classifier ends early where held-out tags say so): "
        + "; ".join(f"{point['plan']['patients']} patients: {_steps(point)}" for point in points)
        + ".",
        "",
        f"![Learning curve](figures/{'learning_curve.png'})",
    ]


def _loop_lines(point: dict[str, Any]) -> list[str]:
    plan, record, lines = point["plan"], point["record"], []
    held_out = record["held_out"].get("mean", float("nan"))
    present = sum(record["num_present_slices"].values())
    for method, s in point["scores"].items():
        tagged = f"{plan['patients']} ({plan['share']:.0%}) | {record['num_slices']}, {present} | {held_out:.3f}"
        lines.append(f"| {plan['budget']['steps']} | {tagged} | `{method}` | {_scores(s)} |")
    return lines


def _against_fewer(points: Sequence[dict[str, Any]]) -> list[str]:
    """What more tagged patients changed for each test patient, from one point with the same budget to the next."""
    lines = []
    for fewer, more in pairwise(points):
        if fewer["plan"]["budget"] != more["plan"]["budget"] or "student" not in fewer["scores"] or "student" not in more["scores"]:
            continue
        changed = _change(fewer["volume_dice"]["student"], more["volume_dice"]["student"])
        lines.append(f"from {fewer['plan']['patients']} to {more['plan']['patients']} patients {changed}")
    if not lines:
        return []
    return [
        f"Volume Dice of `student`, paired over test patients: {'; '.join(lines)}. One training a point: its luck is in these figures.",
        "",
    ]


def _change(before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]]) -> str:
    """Mean difference, its interval over patients, and how many of them gained."""
    pairs = {patient: np.subtract(after[patient], values).tolist() for patient, values in before.items()}
    mean, low, high = bootstrap_mean(pairs)
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}], {sum(np.mean(values) > 0 for values in pairs.values())} of {len(pairs)} better"


def _longer_part(points: Sequence[dict[str, Any]], shipped: Path) -> list[str]:
    """The trainings that got what the shipped model took, against that one."""
    if not points:
        return []
    plan, record = points[0]["plan"], points[0]["record"]
    lines = [
        f"All {plan['patients']} patients in the same way, with a larger budget. The model that ships took {SHIPPED_STEPS} steps of its "
        f"diffusion model, from the same tags and those of synthetic studies; its card estimates `make train` at "
        f"{SHIPPED_MINUTES:g} minutes. A budget in minutes goes as far as the machine is fast: the steps are below. "
        f"Seed {plan['seed']}; {record['machine']}.",
        "",
        "| budget | held-out tag score | task | volume Dice | slice Dice | found | clean negatives | volume Dice against shipped |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for point in points:
        held_out = point["record"]["held_out"].get("mean", float("nan"))
        for task, s in point["scores"].items():
            change = _change(_volume_dice(shipped / f"rest_{task}.json"), point["volume_dice"][task])
            lines.append(f"| {_budget(point)} | {held_out:.3f} | `{task}` | {_scores(s)} | {change} |")
    for task in points[0]["scores"]:
        scored = json.loads((shipped / f"rest_{task}.json").read_text())["summary"]
        lines.append(f"| the model that ships | | `{task}` | {_scores(scored)} | |")
    steps = "; ".join(f"{_budget(point)}: {_steps(point)}" for point in points)
    return [*lines, "", f"Steps of each stage and round: {steps}."]


def _budget(point: dict[str, Any]) -> str:
    budget = point["plan"]["budget"]
    return f"{budget['steps']} steps" if budget["steps"] else f"{budget['minutes']:g} minutes"


def _other_part(points: Sequence[dict[str, Any]], introduction: str) -> list[str]:
    """The data sets that are no curve: of the training with most steps, a line a method and class."""
    if not points:
        return []
    plan, record, scores = points[-1]["plan"], points[-1]["record"], points[-1]["scores"]
    num_images = next(iter(scores.values()))["cases"]
    present = ", ".join(f"{name} on {count}" for name, count in record["num_present_slices"].items())
    return [
        f"{introduction} {plan['patients']} patients (or groups of near-duplicates) tagged, {record['num_slices']} slices learned from "
        f"({present}), {_budget(points[-1])}, seed {plan['seed']}; {record['machine']}. {num_images} test images; "
        "every method with the gate and the settings that the trainer chose on tags.",
        "",
        "| method | Dice an image | slice Dice | found | clean negatives | HD95 px |",
        "|---|---|---|---|---|---|",
        *(f"| `{name}` | {_scores(s)} | {_pixels(s['hd95_px'])} |" for name, s in scores.items()),
        "",
        *_found_as(points[-1].get("found_as", {})),
        f"Steps of each stage and round: {_steps(points[-1])}. Held-out tag score {record['held_out'].get('mean', float('nan')):.3f}"
        f"{_by_class(record['held_out'])}.",
    ]


def _by_class(held_out: Mapping[str, float]) -> str:
    """AUC of gate and map of each class, on the slices of held-out patients."""
    parts = [f"{key.replace('/', ' of ')} {auc:.3f}" for key, auc in held_out.items() if "/" in key]
    return f", the mean of these AUC: {', '.join(parts)}" if parts else ""


def _found_as(found_as: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Whether classes of which an image holds one at most are told apart."""
    if not found_as:
        return []
    names = [name for name in next(iter(found_as.values())) if name != "images"]
    rows = (f"| {own} | {of['images']} | " + " | ".join(f"{of[name]:.3f}" for name in names) + " |" for own, of in found_as.items())
    return [
        "Share of the lesions that the mask of each class meets, `student`:",
        "",
        "| lesion | images | " + " | ".join(f"found as {name}" for name in names) + " |",
        "|---|---|" + "---|" * len(names),
        *rows,
        "",
    ]


def _pixels(distance: float | None) -> str:
    return "" if distance is None else f"{distance:.1f}"


def _scores(s: dict[str, Any]) -> str:
    """Cells of one summary of the scorer."""
    low, high = s["volume_dice_ci95"]
    negatives = "" if s["clean_negatives"] is None else f"{s['clean_negatives']:.3f}"
    return f"{s['volume_dice']:.3f} [{low:.3f}, {high:.3f}] | {s['slice_dice']:.3f} | {s['slice_found']:.3f} | {negatives}"


def _steps(point: dict[str, Any]) -> str:
    return ", ".join(f"{name} {count}" for name, count in point["record"]["steps"].items())


def draw_loop(points: Sequence[dict[str, Any]], shipped: Path, path: Path) -> None:
    """Dice against the number of tagged patients, a line a task and budget, and that of the model that ships where it was scored."""
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for steps, marker in zip(sorted({point["plan"]["budget"]["steps"] for point in points}), MARKERS, strict=False):
        for method in points[0]["scores"]:
            own = [point for point in points if point["plan"]["budget"]["steps"] == steps and method in point["scores"]]
            counts, found = [point["plan"]["patients"] for point in own], [point["scores"][method] for point in own]
            means = [s["volume_dice"] for s in found]
            ends = [[mean - s["volume_dice_ci95"][0] for mean, s in zip(means, found, strict=True)]]
            ends.append([s["volume_dice_ci95"][1] - mean for mean, s in zip(means, found, strict=True)])
            colour, label = COLOURS.get(method, "black"), f"{method}, {steps} steps"
            aside = 0.3 * list(points[0]["scores"]).index(method)  # bars of two tasks would hide each other
            axis.errorbar([count + aside for count in counts], means, ends, marker=marker, capsize=3, color=colour, label=label)
    if shipped.exists():
        level = json.loads(shipped.read_text())["summary"]["volume_dice"]
        axis.axhline(level, color="#6e7781", linestyle=":", label="student that ships")
    axis.set(xlabel="patients tagged", ylabel="volume Dice, lgg test", ylim=(0, 1))
    axis.legend(loc="lower right", frameon=False)
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def _active_part(simulation: dict[str, Any] | None, figures: Path) -> list[str]:
    if simulation is None:
        return []
    settings, parts = simulation["settings"], simulation["seeds"]
    draw_active(simulation, figures / "active_learning.png")
    counts = tagged_counts(settings)
    means = {name: _mean_curve(parts, name) for name in ORDERS}
    lines = [
        "A simulation of the classifier stage alone, on tags: it says which patients are worth a tag, not how good masks become. "
        f"{settings['pool']} `lgg` train patients at {settings['size']} pixels, {settings['start']} of them tagged at first, "
        f"{settings['per_round']} more a round; {settings['first_steps']} steps of {settings['batch_size']} slices at first and "
        f"{settings['steps']} a round, from the same weights for both orders; {len(parts)} repetitions. Tag AUC on the slices of the "
        f"{settings['judged']} validation patients, which are never offered: mean, and lowest to highest of the repetitions.",
        "",
        "| patients tagged | by doubt (`uncertain`) | at random | difference, and in how many repetitions doubt is ahead |",
        "|---|---|---|---|",
    ]
    for index, count in enumerate(counts):
        both = {name: [part["curves"][name][index] for part in parts] for name in ORDERS}
        gaps = [u - r for u, r in zip(both["uncertain"], both["random"], strict=True)]
        cells = [f"{means[name][index]:.3f} ({min(both[name]):.3f} to {max(both[name]):.3f})" for name in ORDERS]
        ahead = f"{sum(gap > 0 for gap in gaps)} of {len(gaps)}" if index else ""
        lines.append(f"| {count} | {cells[0]} | {cells[1]} | {sum(gaps) / len(gaps):+.3f} {ahead} |")
    lines += ["", _verdict(counts, means), "", "![Active learning](figures/active_learning.png)"]
    return lines


def tagged_counts(settings: dict[str, Any]) -> list[int]:
    """Patients tagged at each look."""
    return [settings["start"] + number * settings["per_round"] for number in range(settings["rounds"] + 1)]


def _mean_curve(parts: Sequence[dict[str, Any]], name: str) -> list[float]:
    columns = zip(*(part["curves"][name] for part in parts), strict=True)
    return [sum(column) / len(column) for column in columns]


def _verdict(counts: Sequence[int], means: dict[str, list[float]]) -> str:
    """How many patients each order needs for what the other one ends with, whichever ends higher."""
    level = min(max(means[name]) for name in ORDERS)
    needed = {name: next(count for count, mean in zip(counts, means[name], strict=True) if mean >= level) for name in ORDERS}
    return (
        f"For the highest mean AUC that both orders reach, {level:.3f}: {needed['uncertain']} patients by doubt, {needed['random']} "
        "at random. With so few repetitions, differences smaller than the spread between them say nothing."
    )


def draw_active(simulation: dict[str, Any], path: Path) -> None:
    """Held-out tag AUC against the number of tagged patients; thin lines are repetitions."""
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    counts = tagged_counts(simulation["settings"])
    for name, colour in ORDERS.items():
        for part in simulation["seeds"]:
            axis.plot(counts, part["curves"][name], color=colour, alpha=0.3, linewidth=0.8)
        axis.plot(counts, _mean_curve(simulation["seeds"], name), color=colour, marker="o", label=name)
    axis.set(xlabel="patients tagged", ylabel="tag AUC, validation patients")
    axis.legend(loc="lower right", frameon=False)
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)

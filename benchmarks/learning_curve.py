"""Writes docs/learning-curve.md and its figures from what `benchmarks.loop` and `benchmarks.active` found; runs nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from app_cdm.metrics.bootstrap import bootstrap_mean

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "runs" / "benchmark" / "rest_student.json"
SHIPPED_STEPS = 5191
COLOURS = {"student": "#1a7f37", "cldf": "#0969da", "cdm_saliency": "#bc4c00"}
MARKERS = "oDsv"
PICTURES = (
    "`busi`: pictures, lesions mostly darker than what surrounds them, the classes benign and malignant, and normal pictures without "
    "either; any lesion is scored against any mask."
)
HEARTS = (
    "`acdc_rv`: left ventricle, myocardium and right ventricle, each present or absent on a slice; four slices in five hold all three, so "
    "the tags hardly tell them apart."
)
ORDERS = {"uncertain": "#1a7f37", "random": "#6e7781"}


def write_document(loop: Path, active: Path, output: Path, figures: Path) -> None:
    """Writes the document from the results there are; the curve and the simulation say which command makes them where they have none."""
    found = sorted((_read_point(path) for path in loop.glob("*/result.json")), key=_order)
    points, pictures, hearts = ([point for point in found if point["plan"]["dataset"] == name] for name in ("lgg", "busi", "acdc_rv"))
    simulation = json.loads((active / "result.json").read_text()) if (active / "result.json").exists() else None
    figures.mkdir(parents=True, exist_ok=True)
    lines = [
        "# What tags are worth",
        "",
        "Written by `make benchmark-loop` and `make benchmark-active`. Research use only, not a medical device.",
        "",
    ]
    lines += ["## Learning curve: from no model to masks, over REST", "", *_loop_part(points, figures), ""]
    if pictures:
        lines += ["## Breast ultrasound through the same loop", "", *_other_part(pictures, PICTURES), ""]
    if hearts:
        lines += ["## Cine MR of the heart, three classes: a stress test", "", *_other_part(hearts, HEARTS), ""]
    lines += ["## Next Sample by doubt against random order", "", *_active_part(simulation, figures), ""]
    output.write_text("\n".join(lines))
    print(f"wrote {output}")


def _read_point(path: Path) -> dict[str, Any]:
    """A training with its scores and, as `volume_dice`, task -> patient -> volume Dice of each image."""
    point: dict[str, Any] = json.loads(path.read_text())
    point["volume_dice"] = {}
    for task in point["scores"]:
        by_patient = point["volume_dice"].setdefault(task, {})
        for case in json.loads((path.parent / f"rest_{task.replace(' ', '_')}.json").read_text())["cases"]:
            by_patient.setdefault(case["patient"], []).append(float("nan") if case["volume_dice"] is None else case["volume_dice"])
    return point


def _order(point: dict[str, Any]) -> tuple[int, int]:
    return point["plan"]["steps"], point["plan"]["patients"]


def _loop_part(points: Sequence[dict[str, Any]], figures: Path) -> list[str]:
    if not points:
        return ["Not run yet: `make benchmark-loop`."]
    draw_loop(points, figures / "learning_curve.png")
    first = points[0]
    plan, n = first["plan"], first["scores"][next(iter(first["scores"]))]["cases"]
    budgets = sorted({point["plan"]["steps"] for point in points})
    return [
        "An empty app, started on copies of the `lgg` train volumes; patients tagged one request an image, as the tagging page does; one "
        f"`POST /train/weak_label` from scratch, with the same budget whatever the number of tags: {budgets[0]} steps of the diffusion "
        "model, of the other stages as many or their default number where that is less"
        + (f"; with all patients also {', '.join(map(str, budgets[1:]))}" if budgets[1:] else "")
        + f". {n} test patients scored from outside with `score_rest.py`. Seed {plan['seed']}; {first['record']['machine']}. "
        "About a fifth of the tagged patients are held out by the trainer. Mean with 95 % bootstrap interval over patients.",
        "",
        "| steps | patients tagged | slices learned from, present | held-out tag score | task | volume Dice | slice Dice | found "
        "| clean negatives |",
        "|---|---|---|---|---|---|---|---|---|",
        *(line for point in points for line in _loop_lines(point)),
        "",
        *_against_fewer(points),
        *_against_shipped(points),
        "Steps of each stage and round (the classifier ends early where held-out tags say so): "
        + "; ".join(f"{point['plan']['patients']} patients: {_steps(point)}" for point in points)
        + ".",
        "",
        f"![Learning curve](figures/{'learning_curve.png'})",
    ]


def _against_fewer(points: Sequence[dict[str, Any]]) -> list[str]:
    """What more tagged patients changed for each test patient, from one point with the same budget to the next."""
    lines = []
    for fewer, more in pairwise(points):
        if fewer["plan"]["steps"] != more["plan"]["steps"] or "student" not in fewer["scores"] or "student" not in more["scores"]:
            continue
        before, after = fewer["volume_dice"]["student"], more["volume_dice"]["student"]
        pairs = {patient: np.subtract(after[patient], values).tolist() for patient, values in before.items()}
        mean, low, high = bootstrap_mean(pairs)
        gained = sum(np.mean(values) > 0 for values in pairs.values())
        counts = f"from {fewer['plan']['patients']} to {more['plan']['patients']} patients"
        lines.append(f"{counts} {mean:+.3f} [{low:+.3f}, {high:+.3f}], {gained} of {len(pairs)} better")
    if not lines:
        return []
    return [
        f"Volume Dice of `student`, paired over test patients: {'; '.join(lines)}. One training a point: its luck is in these figures.",
        "",
    ]


def _against_shipped(points: Sequence[dict[str, Any]]) -> list[str]:
    """How far the trainings with all patients end from the model that ships; nothing where that has not been scored."""
    if not SHIPPED.exists():
        return []
    shipped = json.loads(SHIPPED.read_text())["summary"]["volume_dice"]
    most = max(point["plan"]["patients"] for point in points)
    gaps = [
        f"{point['scores']['student']['volume_dice'] - shipped:+.3f} after {point['plan']['steps']} steps"
        for point in points
        if point["plan"]["patients"] == most and "student" in point["scores"]
    ]
    return [
        f"`student` with {most} patients against the one that ships (volume Dice {shipped:.3f}, {SHIPPED_STEPS} steps of its diffusion "
        f"model, from the same tags and synthetic studies): {'; '.join(gaps)}.",
        "",
    ]


def _other_part(points: Sequence[dict[str, Any]], introduction: str) -> list[str]:
    """The data sets that are no curve: of the training with most steps, a line a method and class."""
    plan, record, scores = points[-1]["plan"], points[-1]["record"], points[-1]["scores"]
    num_images = next(iter(scores.values()))["cases"]
    present = ", ".join(f"{name} on {count}" for name, count in record["num_present_slices"].items())
    return [
        f"{introduction} {plan['patients']} patients (or groups of near-duplicates) tagged, {record['num_slices']} slices learned from "
        f"({present}), {plan['steps']} steps, seed {plan['seed']}; {record['machine']}. {num_images} test images; "
        "every method with the gate and the settings that the trainer chose on tags.",
        "",
        "| method | Dice an image | slice Dice | found | clean negatives | HD95 px |",
        "|---|---|---|---|---|---|",
        *(f"| `{name}` | {_scores(s)} | {_pixels(s['hd95_px'])} |" for name, s in scores.items()),
        "",
        f"Steps of each stage and round: {_steps(points[-1])}. Held-out tag score {record['held_out'].get('mean', float('nan')):.3f}.",
    ]


def _pixels(distance: float | None) -> str:
    return "" if distance is None else f"{distance:.1f}"


def _loop_lines(point: dict[str, Any]) -> list[str]:
    plan, record, lines = point["plan"], point["record"], []
    held_out = record["held_out"].get("mean", float("nan"))
    present = sum(record["num_present_slices"].values())
    for method, s in point["scores"].items():
        tagged = f"{plan['patients']} ({plan['share']:.0%}) | {record['num_slices']}, {present} | {held_out:.3f}"
        lines.append(f"| {plan['steps']} | {tagged} | `{method}` | {_scores(s)} |")
    return lines


def _scores(s: dict[str, Any]) -> str:
    """Cells of one summary of the scorer."""
    low, high = s["volume_dice_ci95"]
    negatives = "" if s["clean_negatives"] is None else f"{s['clean_negatives']:.3f}"
    return f"{s['volume_dice']:.3f} [{low:.3f}, {high:.3f}] | {s['slice_dice']:.3f} | {s['slice_found']:.3f} | {negatives}"


def _steps(point: dict[str, Any]) -> str:
    return ", ".join(f"{name} {count}" for name, count in point["record"]["steps"].items())


def draw_loop(points: Sequence[dict[str, Any]], path: Path) -> None:
    """Dice against the number of tagged patients, a line a task and budget."""
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for steps, marker in zip(sorted({point["plan"]["steps"] for point in points}), MARKERS, strict=False):
        for method in points[0]["scores"]:
            own = [point for point in points if point["plan"]["steps"] == steps and method in point["scores"]]
            counts, found = [point["plan"]["patients"] for point in own], [point["scores"][method] for point in own]
            means = [s["volume_dice"] for s in found]
            ends = [[mean - s["volume_dice_ci95"][0] for mean, s in zip(means, found, strict=True)]]
            ends.append([s["volume_dice_ci95"][1] - mean for mean, s in zip(means, found, strict=True)])
            colour, label = COLOURS.get(method, "black"), f"{method}, {steps} steps"
            aside = 0.3 * list(points[0]["scores"]).index(method)  # bars of two tasks would hide each other
            axis.errorbar([count + aside for count in counts], means, ends, marker=marker, capsize=3, color=colour, label=label)
    if SHIPPED.exists():
        shipped = json.loads(SHIPPED.read_text())["summary"]["volume_dice"]
        axis.axhline(shipped, color="#6e7781", linestyle=":", label="student that ships")
    axis.set(xlabel="patients tagged", ylabel="volume Dice, lgg test", ylim=(0, 1))
    axis.legend(loc="lower right", frameon=False)
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def _active_part(simulation: dict[str, Any] | None, figures: Path) -> list[str]:
    if simulation is None:
        return ["Not run yet: `make benchmark-active`."]
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

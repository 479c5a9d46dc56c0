"""The whole loop over REST, from no model to masks: `python -m benchmarks.loop --data <folder> --scorer <score_rest.py>`.

For each share of the tagged patients an empty app is started on copies of the train images, the patients are tagged as the tagging page
does it, a model is trained from scratch through `POST /train/weak_label`, and the masks of the test patients are scored from outside.
`lgg` gives a learning curve; `busi` (pictures, dark lesions, two classes) and `acdc_rv` (three classes that are nearly always there
together) show that nothing is wired to volumes of the brain. The budget is a number of steps, the same for every share, so it does not
matter what else the machine does meanwhile. Patients of a smaller share are among those of a larger one. An interrupted benchmark goes on
where it stopped: a training is resumed, and what is scored stays; `--fresh` starts over.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import requests

from app_cdm.data.tags import TagTable, read_tags
from app_cdm.pipeline import CDMPipeline
from app_cdm.training.held_out import split_patients
from app_cdm.training.retrain import RetrainSettings
from app_cdm.training.settings import TrainSettings
from benchmarks.learning_curve import ROOT, SHIPPED, SHIPPED_MINUTES, SHIPPED_STEPS, write_document
from benchmarks.scorer import ROWS, score_over_rest
from demo.server import LabelServer, find_free_port

CURVE = "lgg"
USER = "benchmark"
POLL_S = 2.0
TIMEOUT_S = 60
OK = 200
IDLE_LOOKS = 5  # a training that was just asked for may not be listed yet


class LoopError(RuntimeError):
    """The server refused something, or a training failed; the message says what it said."""


@dataclass(frozen=True)
class Dataset:
    """How a data set is laid out, and what is scored of it.

    Attributes:
        table: of its tags.
        classes: class -> column, as `read_tags` takes them.
        file: name of an image.
        rows: keys of the rows to score.
        shares: of the tagged patients.
        exclude: column that says which rows to leave out.
        values: class -> its value in the reference masks, where classes are scored one by one.
        any_class: value of any class in the reference masks, where an image holds one class at most: whether the student takes it for the
            right one is counted.
    """

    table: str
    classes: Mapping[str, str]
    file: str
    rows: tuple[str, ...]
    shares: tuple[float, ...]
    exclude: str | None = None
    values: Mapping[str, int] = field(default_factory=dict)
    any_class: int | None = None


DATASETS = {
    "lgg": Dataset("slices.csv", {"tumor": "has_lesion"}, "{image}_flair.nii.gz", ("student", "cldf"), (0.25, 0.5, 1.0)),
    "busi": Dataset(
        "images.csv",
        {"benign": "class=benign", "malignant": "class=malignant"},
        "{image}.png",
        ("student", "cldf", "parallel", "layer_cam", "grad_cam", "gradient", "reference"),
        (1.0,),
        "label_conflict",
        any_class=255,
    ),
    "acdc_rv": Dataset(
        "slices.csv",
        {"lv": "has_lv", "myocardium": "has_myo", "rv": "has_rv"},
        "{image}_cine.nii.gz",
        ("student", "cldf", "parallel", "layer_cam"),
        (1.0,),
        values={"lv": 3, "myocardium": 2, "rv": 1},
    ),
}


@dataclass(frozen=True)
class Budget:
    """What ends a training: steps, or minutes where there are none.

    Attributes:
        steps: of the diffusion model, and of the other stages as many, or their default number where that is less.
        minutes: of the whole training.
    """

    steps: int = 0
    minutes: float = 0.0

    def __str__(self) -> str:
        return f"{self.steps} steps" if self.steps else f"{self.minutes:g} minutes"

    def asked_for(self, num_slices: int) -> dict[str, float]:
        """The same as the trainer is asked for it, by passes over the slices learned from where it is steps."""
        if self.steps:
            return {"epochs": self.steps * TrainSettings().diffusion.batch_size / num_slices}
        return {"minutes": self.minutes}


@dataclass(frozen=True)
class Plan:
    """One training.

    Attributes:
        dataset: a key of `DATASETS`.
        share: of the tagged patients.
        patients: how many that are.
        budget: what ends it.
        seed: of the choice of patients, and of the training.
    """

    dataset: str
    share: float
    patients: int
    budget: Budget
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{'' if self.dataset == CURVE else self.dataset + '_'}{self.patients}_patients_{self.budget}_seed_{self.seed}".replace(
            " ", "_"
        )


def main() -> int:
    """Trains and scores what is not there yet, and writes the document."""
    options = _parser().parse_args()
    if options.fresh:
        shutil.rmtree(options.run, ignore_errors=True)
    options.run.mkdir(parents=True, exist_ok=True)
    dataset, folder = DATASETS[options.dataset], options.data / options.dataset
    tags = read_tags(folder / dataset.table, dataset.classes, "train", dataset.exclude)
    patients = sorted(set(tags.patients.values()))
    random.Random(options.seed).shuffle(patients)
    patients = patients[: options.patients]
    num_slices = count_slices(folder / dataset.table)
    plans = [(share, Budget(options.steps)) for share in sorted(options.fractions or dataset.shares) if options.steps]
    if options.dataset == CURVE:
        longer = (Budget(options.long_steps), Budget(minutes=options.long_minutes))
        plans += [(1.0, budget) for budget in longer if budget.steps or budget.minutes]
    for share, budget in plans:
        chosen = set(patients[: max(1, round(share * len(patients)))])
        tagged = tags.subset(image for image in tags.tags if tags.patients[image] in chosen)
        learned, _ = split_patients(tagged, RetrainSettings().held_out_share)
        asked_for = budget.asked_for(sum(num_slices[image] for image in learned.tags))
        plan = Plan(options.dataset, share, len(chosen), budget, options.seed)
        if not (options.run / plan.name / "result.json").exists():
            print(f"== {plan.name}", flush=True)
            run_once(options, plan, asked_for, tagged, tags)
        if budget.minutes or budget.steps >= SHIPPED_STEPS:
            score_shipped(options)
    write_document(options.run, options.active_run, options.output, options.figures)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds lgg/, busi/ and acdc_rv/")
    parser.add_argument("--dataset", choices=sorted(DATASETS), default=CURVE, help="default: %(default)s")
    parser.add_argument("--scorer", type=Path, required=True, help="score_rest.py")
    parser.add_argument("--steps", type=int, default=1250, help="budget of each training, see above; 0 is without (default: %(default)s)")
    parser.add_argument(
        "--long-steps",
        type=int,
        default=SHIPPED_STEPS,
        help="budget of one more training on lgg, with all patients; 0 is without (default: %(default)s, that of the shipped model)",
    )
    parser.add_argument(
        "--long-minutes",
        type=float,
        default=SHIPPED_MINUTES,
        help="of yet another one; 0 is without (default: %(default)s, what its card estimates for `make train`)",
    )
    parser.add_argument("--fractions", type=float, nargs="+", help="shares of the tagged patients (default: of lgg .25 .5 1, else 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of patients and of the trainings")
    parser.add_argument("--device", default="auto", help="auto, cuda or cpu")
    parser.add_argument("--patients", type=int, help="only so many of the train patients, to try it out")
    parser.add_argument("--limit", type=int, help="only so many of the test patients, to try it out")
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "loop", help="folder for copies, models and results as JSON")
    parser.add_argument("--active-run", type=Path, default=ROOT / "runs" / "active", help="folder of benchmarks.active")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "learning-curve.md", help="document to write")
    parser.add_argument("--figures", type=Path, default=ROOT / "docs" / "figures", help="folder of the figures")
    parser.add_argument("--fresh", action="store_true", help="do everything again")
    return parser


def run_once(options: argparse.Namespace, plan: Plan, asked_for: dict[str, float], tags: TagTable, everything: TagTable) -> None:
    """One training: copies, tags, training, scores."""
    dataset, folder, source = DATASETS[plan.dataset], options.run / plan.name, options.data / plan.dataset
    copies = folder / "studies"
    copies.mkdir(parents=True, exist_ok=True)
    (folder / "models").mkdir(exist_ok=True)
    for image in everything.tags:
        name = dataset.file.format(image=image)
        target = copies / f"{image}{name[name.index('.') :]}"
        if not target.exists():
            shutil.copyfile(source / "images" / name, target.with_suffix(".part"))
            os.replace(target.with_suffix(".part"), target)
    extra = ("--model-dir", str(folder / "models"), "--classes", ",".join(dataset.classes), "--device", options.device)
    with LabelServer(copies, find_free_port(), folder / "server.log", folder / "cache", extra) as server:
        trained = folder / "trained.json"
        if not trained.exists():
            tag_as_the_page_does(server.url, tags)
            _write(trained, train_over_rest(server.url, asked_for, plan.seed, options.device))
        scores = {}
        # The app numbers classes alphabetically.
        targets = {f" {name}": (dataset.values[name], number) for number, name in enumerate(sorted(dataset.values), start=1)} or {"": None}
        for row in (row for row in ROWS if row.key in dataset.rows):
            for target, values in targets.items():
                result = folder / f"rest_{row.key}{target.replace(' ', '_')}.json"
                scores[row.key + target] = score_over_rest(
                    options.scorer, server.url, row, source, "test", result, limit=options.limit, values=values
                )
        apart = count_classes(options, server.url, dataset, source, folder) if dataset.any_class is not None else {}
    record = dict(CDMPipeline.from_pretrained(model_in_service(folder / "models")).config.training)
    found = {"plan": asdict(plan), "training": json.loads(trained.read_text()), "scores": scores}
    if apart:
        found["found_as"] = apart
    found["record"] = {key: record[key] for key in ("num_images", "num_slices", "num_present_slices", "steps", "held_out", "machine")}
    _write(folder / "result.json", found)


def count_classes(options: argparse.Namespace, url: str, dataset: Dataset, source: Path, folder: Path) -> dict[str, dict[str, float]]:
    """Class of the test images -> how many they are, and the share of them that the student's mask of each class meets."""
    assert dataset.any_class is not None
    student = next(row for row in ROWS if row.key == "student")
    tags = read_tags(source / dataset.table, dataset.classes, "test", dataset.exclude).tags
    met: dict[str, dict[str, list[bool]]] = {}
    for number, name in enumerate(sorted(dataset.classes), start=1):  # as the app numbers them
        result, values = folder / f"rest_student_as_{name}.json", (dataset.any_class, number)
        score_over_rest(options.scorer, url, student, source, "test", result, limit=options.limit, values=values)
        for case in json.loads(result.read_text())["cases"]:
            for own in (own for own, value in tags[Path(case["case"]).stem].items() if value):
                met.setdefault(own, {}).setdefault(name, []).append(any(case["slice_found"]))
    return {
        own: {"images": len(next(iter(of.values()))), **{name: sum(found) / len(found) for name, found in of.items()}}
        for own, of in met.items()
    }


def score_shipped(options: argparse.Namespace) -> None:
    """The model that ships on the same test patients, for the trainings that got as much as it did."""
    folder = options.run / SHIPPED
    (folder / "studies").mkdir(parents=True, exist_ok=True)
    with LabelServer(folder / "studies", find_free_port(), folder / "server.log", folder / "cache", ("--device", options.device)) as server:
        for row in (row for row in ROWS if row.key in DATASETS[CURVE].rows):
            result = folder / f"rest_{row.key}.json"
            score_over_rest(options.scorer, server.url, row, options.data / CURVE, "test", result, limit=options.limit)


def tag_as_the_page_does(url: str, tags: TagTable) -> None:
    """One `PUT /tags/<image>` an image, with slice ranges; then a table of whose they are, where that is not an image's own name."""
    for image, by_class in tags.tags.items():
        body = {"tags": {name: value if value in (True, False, None) else list(value) for name, value in by_class.items()}, "user": USER}
        _checked(requests.put(f"{url}/tags/{image}", json=body, timeout=TIMEOUT_S))
    if any(image != patient for image, patient in tags.patients.items()):
        exported = csv.DictReader(_checked(requests.get(f"{url}/tags/export", timeout=TIMEOUT_S)).text.splitlines())
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, ("image", "patient", "class", "tag"), extrasaction="ignore")
        writer.writeheader()
        writer.writerows({**row, "patient": tags.patients[row["image"]]} for row in exported)
        sent = {"file": ("patients.csv", table.getvalue().encode())}
        _checked(requests.post(f"{url}/tags/import", params={"user": USER}, files=sent, timeout=TIMEOUT_S))


def count_slices(path: Path) -> dict[str, int]:
    """Image -> slices, from the table of tags: one row a slice or a picture."""
    with path.open(newline="") as file:
        return dict(Counter(row.get("volume") or row.get("image_id") or row["patient_id"] for row in csv.DictReader(file)))


def train_over_rest(url: str, budget: dict[str, float], seed: int, device: str) -> dict[str, Any]:
    """Trains from scratch, or goes on with what was interrupted, and returns how it ended.

    Raises:
        LoopError: the training failed, or its process ended without a result.
    """
    began, told, idle = time.monotonic(), "", 0
    if train_stats(url).get("state") != "published":  # else it had ended just before this benchmark was interrupted
        wanted = {"stages": "all", "start": "scratch", **budget, "seed": seed, "device": device}
        _checked(requests.post(f"{url}/train/weak_label", json=wanted, timeout=TIMEOUT_S))
    while idle < IDLE_LOOKS:
        time.sleep(POLL_S)
        stats = train_stats(url)
        is_running = requests.get(f"{url}/train/", params={"check_if_running": True}, timeout=TIMEOUT_S).status_code == OK
        idle = 0 if is_running else idle + 1
        line = f"{stats.get('epoch', 0):3d} % {stats.get('message', '')}"
        if line[:3] != told[:3]:
            told = line
            print(line, flush=True)
    if stats.get("state") != "published":
        raise LoopError(f"training ended as {stats.get('state')!r}: {stats.get('message', 'see server.log')}")
    return {"wall_s": round(time.monotonic() - began, 1), **{key: stats[key] for key in ("state", "message", "version", "held_out")}}


def train_stats(url: str) -> dict[str, Any]:
    """What the server says of its last training."""
    stats: dict[str, Any] = _checked(requests.get(f"{url}/info/", timeout=TIMEOUT_S)).json()["train_stats"]["weak_label"]
    return stats


def model_in_service(models: Path) -> Path:
    """Folder of the one model that was trained."""
    (current,) = (models / ".versions").glob("*/current")
    return current.parent / current.read_text().strip()


def _checked(reply: requests.Response) -> requests.Response:
    if not reply.ok:
        raise LoopError(f"{reply.request.method} {reply.url}: {reply.status_code} {reply.text[:500]}")
    return reply


def _write(path: Path, value: object) -> None:
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(value, indent=1))
    os.replace(temporary, path)


if __name__ == "__main__":
    raise SystemExit(main())

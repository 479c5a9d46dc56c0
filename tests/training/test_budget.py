"""How minutes are shared among stages: every stage has time to end, and the diffusion model gets what is left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app_cdm.cldf.features import FeatureSettings
from app_cdm.cldf.settings import CLDFSettings
from app_cdm.data.tags import TagTable
from app_cdm.student.settings import StudentSettings
from app_cdm.training.budget import SHARES, Budget, Speeds, count_mapped_slices, measured_once, warmed_up_in_time
from app_cdm.training.settings import TrainSettings
from tests.training.synthetic import tiny_settings

ALL = ("classifier", "diffusion", "cldf", "student")
SLOW = Speeds(classifier=0.75, diffusion=2.6, student=0.4, votes=0.65, features=0.05)  # one core without bfloat16
FAST = Speeds(classifier=0.02, diffusion=0.06, student=0.01, votes=0.02, features=0.002)


@given(st.floats(0.1, 600), st.integers(0, 5000), st.sampled_from([ALL, ALL[:2], ALL[2:], ("student",), ("classifier",)]))
def test_nothing_is_negative_and_what_fits_is_kept(minutes: float, num_mapped: int, stages: tuple[str, ...]) -> None:
    budget = Budget.shared(minutes, stages, TrainSettings(), SLOW, num_mapped)
    assert tuple(budget.seconds) == stages
    assert all(seconds > 0 for seconds in budget.seconds.values())
    total = sum(budget.seconds.values()) + budget.maps_s
    assert sum(budget.seconds.values()) >= 0.4 * 60 * minutes * (1 - 1e-9)
    if budget.maps_s <= 0.6 * 60 * minutes:
        assert total == pytest.approx(60 * minutes)


def test_half_an_hour_on_a_slow_core_ends_with_a_student_and_gives_the_rest_to_the_diffusion_model() -> None:
    budget = Budget.shared(30, ALL, TrainSettings(), SLOW, 560)
    assert sum(budget.seconds.values()) + budget.maps_s == pytest.approx(1800)
    assert budget.seconds["student"] / SLOW.student > 900, "two rounds of several hundred steps"
    assert budget.seconds["diffusion"] > 1.2 * budget.seconds["student"]


def test_later_stages_take_their_default_steps_and_no_more_from_a_long_training() -> None:
    budget = Budget.shared(300, ALL, TrainSettings(), SLOW, 560)
    assert budget.seconds["student"] == pytest.approx(2 * 1000 * SLOW.student)
    assert budget.seconds["classifier"] == pytest.approx(2500 * SLOW.classifier)
    assert budget.seconds["diffusion"] > 0.7 * 300 * 60
    on_fast = Budget.shared(30, ALL, TrainSettings(), FAST, 560)
    assert on_fast.seconds["diffusion"] > 0.9 * 30 * 60


def test_stages_of_one_kind_share_everything() -> None:
    budget = Budget.shared(10, ("cldf", "student"), TrainSettings(), FAST, 0)
    assert budget.seconds["student"] / budget.seconds["cldf"] == pytest.approx(SHARES["student"] / SHARES["cldf"])
    assert sum(budget.seconds.values()) == pytest.approx(600)


def test_share_behind_rises_from_zero_to_one_over_stages_and_maps() -> None:
    budget = Budget.shared(30, ALL, TrainSettings(), SLOW, 560)
    shares, marks = dict[str, float](), []
    turns = [
        ("classifier", 0.0),
        ("classifier", 0.4),
        ("diffusion", 0.0),
        ("diffusion", 0.5),
        ("diffusion", 3.0),
        ("cldf", 0.0),
        ("cldf", 0.5),
    ]
    turns += [("student", 0.0), ("student", 0.5), ("cldf", 0.75), ("student", 1.0), ("cldf", 1.0)]
    for stage, share in turns:
        shares[stage] = share
        marks.append(budget.done(shares))
    assert marks == sorted(marks)
    assert marks[0] == 0.0
    assert marks[-1] == pytest.approx(1.0)
    assert marks[5] - marks[4] == pytest.approx(budget.maps_s / 1800)


def test_warm_up_is_a_tenth_of_the_steps_at_most() -> None:
    budget = Budget.shared(10, ALL, TrainSettings(), SLOW, 100)
    short = warmed_up_in_time(TrainSettings(), budget, SLOW)
    assert short.diffusion.num_warmup_steps == int(0.1 * budget.seconds["diffusion"] / SLOW.diffusion) < 200
    long = warmed_up_in_time(TrainSettings(), Budget.shared(1e4, ALL, TrainSettings(), SLOW, 100), SLOW)
    assert long.diffusion.num_warmup_steps == TrainSettings().diffusion.num_warmup_steps


def test_speeds_are_measured_once_and_leave_the_global_random_state_alone(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    path = tmp_path / "run" / "speeds.json"
    settings = tiny_settings(cldf=CLDFSettings(FeatureSettings((0.2,), (), (0, 1))), student=StudentSettings(channels=(8, 16)))
    speeds = measured_once(path, settings, ALL, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(value > 0 for value in speeds.to_dict().values())
    assert measured_once(path, settings, ALL, torch.device("cpu")) == speeds
    first = Speeds.measured(settings, ("classifier",), torch.device("cpu"))
    assert first.classifier > 0
    assert first.diffusion == first.votes == 0


def test_slices_with_maps_are_counted_from_tags() -> None:
    tags = {"a": {"x": ((1, 3), (5, 5)), "y": False}, "b": {"x": True, "y": None}}
    assert count_mapped_slices(TagTable(("x", "y"), tags, {"a": "a", "b": "b"})) == 5

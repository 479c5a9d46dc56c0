"""Workers at one cohort: killed, suspended, failing and taken up again, no case is lost and none is done twice."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch

from app_cdm.cohort.cases import Case
from app_cdm.cohort.claims import Claims
from app_cdm.cohort.outcomes import Failure, Outcomes
from app_cdm.cohort.run import Run, begin_or_join
from app_cdm.cohort.worker import Worker
from app_cdm.pipeline import CDMPipeline
from tests.cohort.processes import ignore, make_cases, start, stuck_at, work
from tests.saliency.counting import out_of_memory_above
from tests.waiting import wait_for


@pytest.fixture
def cases(images: Path) -> list[Case]:
    return make_cases(sorted(images.iterdir()))


def results(output: Path) -> list[str]:
    return sorted(path.name.removesuffix(".json") for path in output.glob("case_*.json"))


def journals(folder: Path) -> Counter[str]:
    return Counter(name for path in folder.glob("journal*") for name in path.read_text().split())


def alone(pipeline: CDMPipeline, cases: list[Case], output: Path, overwrite: bool = False) -> list[tuple[str, Failure | None]]:
    """One process in this one; what it reports."""
    outcomes, told = Outcomes(output, pipeline.class_names), []
    with Claims(output / ".claims") as claims:
        run = Run.of(pipeline.model_version, pipeline.default_settings, outcomes)
        begin_or_join(run, [case.name for case in cases], outcomes, claims, "", overwrite)
        worker = Worker(pipeline, pipeline.default_settings, outcomes, claims)
        worker.work(cases, 0, lambda name, failure: told.append((name, failure)))
    return told


def test_killed_workers_cases_are_redone_none_lost_none_doubled(pipeline: CDMPipeline, cases: list[Case], tmp_path: Path) -> None:
    output = tmp_path / "out"
    victim = start(work, pipeline, stuck_at(cases, "case_03"), output, tmp_path / "journal_victim", 0, "one")
    wait_for(lambda: list((output / ".claims").glob("case_03-*.1.claim")), "the victim to be stuck")
    survivor = start(work, pipeline, [*cases], output, tmp_path / "journal_survivor", 6, "one")
    wait_for(lambda: len(results(output)) == 11, "the survivor to have nothing else to do")
    assert survivor.is_alive(), "it must wait for what others hold"
    assert "case_03" not in results(output)
    os.kill(victim.pid or 0, signal.SIGKILL)
    survivor.join(60)
    assert survivor.exitcode == 0
    assert victim.exitcode is None or victim.exitcode == -signal.SIGKILL
    names = [case.name for case in cases]
    assert results(output) == names
    assert journals(tmp_path) == Counter(names)
    assert (tmp_path / "journal_survivor").read_text().split()[-1] == "case_03"
    assert {path.name for path in output.glob("*_mask.nii.gz")} == {f"{name}_mask.nii.gz" for name in names}
    assert not list(output.glob(".*.tmp")) + list(output.glob("*.error.json"))


def test_workers_killed_at_any_moment_lose_and_double_nothing(pipeline: CDMPipeline, images: Path, tmp_path: Path) -> None:
    """Three workers, killed in turn wherever they are; the last does what is left."""
    cases = make_cases(sorted(images.iterdir()), delay_s=0.1)
    output = tmp_path / "out"
    for number in range(3):
        before = len(results(output)) if output.exists() else 0
        workers = [start(work, pipeline, cases, output, tmp_path / f"journal_{number}{side}", side * 6, "one") for side in range(2)]
        wait_for(lambda before=before: output.exists() and len(results(output)) >= min(before + 2, 12), "two more results")
        time.sleep(0.037 * number)
        for worker in workers:
            worker.kill()
            worker.join()
    names = [case.name for case in cases]
    alone(pipeline, cases, output)
    assert results(output) == names
    # A worker that is killed between a result and its line has written it nonetheless; nobody else has.
    assert max(journals(tmp_path).values()) == 1
    assert not list(output.glob("*.error.json"))


def test_suspended_worker_comes_too_late_and_changes_nothing(pipeline: CDMPipeline, cases: list[Case], tmp_path: Path) -> None:
    output, slow = tmp_path / "out", make_cases([Path(case.source) for case in cases[:2]], delay_s=1.5)
    sleeper = start(work, pipeline, slow, output, tmp_path / "journal_sleeper", 0, "one", 1.0)
    try:
        wait_for(lambda: list((output / ".claims").glob("case_00-*.1.claim")), "the claim")
        os.kill(sleeper.pid or 0, signal.SIGSTOP)
        other = start(work, pipeline, cases[:2], output, tmp_path / "journal_other", 0, "one", 1.0)
        other.join(60)
        assert other.exitcode == 0
        written = {path.name: path.stat().st_mtime_ns for path in output.glob("case*")}
        os.kill(sleeper.pid or 0, signal.SIGCONT)
        sleeper.join(60)
        assert sleeper.exitcode == 0
        assert {path.name: path.stat().st_mtime_ns for path in output.glob("case*")} == written
        assert journals(tmp_path) == Counter(["case_00", "case_01"])
        assert not (tmp_path / "journal_sleeper").exists()
    finally:
        sleeper.kill()


def test_case_that_kills_its_workers_is_given_up_after_three_and_the_others_are_done(
    pipeline: CDMPipeline, cases: list[Case], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    deadly = [
        Case("case_01", "image", lambda: os.kill(os.getpid(), signal.SIGKILL)) if case.name == "case_01" else case for case in cases[:3]
    ]  # type: ignore[arg-type,return-value]
    for _ in range(3):
        worker = start(work, pipeline, deadly, output, tmp_path / "journal")
        worker.join(60)
        assert worker.exitcode == -signal.SIGKILL
    told = dict(alone(pipeline, deadly, output))
    assert results(output) == ["case_00", "case_01.error", "case_02"]
    failure = told["case_01"]
    assert failure is not None
    assert failure.reason == "the process that worked on it died 3 times"
    assert failure.attempts == 3
    # Taken up again, it has another chance.
    assert dict(alone(pipeline, cases[:3], output)) == {"case_00": None, "case_01": None, "case_02": None}
    assert results(output) == ["case_00", "case_01", "case_02"]


def fail(error: Exception) -> None:
    raise error


def test_failures_are_kept_with_their_reason_and_tried_again_by_the_next_run(
    pipeline: CDMPipeline, cases: list[Case], tmp_path: Path
) -> None:
    errors = {
        "case_00": OSError("the share\nis away"),
        "case_01": RuntimeError(""),
        "case_02": torch.OutOfMemoryError("CUDA out of memory"),
    }
    bad = [Case(case.name, case.source, partial(fail, errors[case.name])) if case.name in errors else case for case in cases[:4]]  # type: ignore[arg-type]
    told = dict(alone(pipeline, bad, tmp_path))
    assert {name: failure and (failure.kind, failure.reason) for name, failure in told.items()} == {
        "case_00": ("OSError", "the share is away"),
        "case_01": ("RuntimeError", "RuntimeError"),
        "case_02": ("OutOfMemoryError", "CUDA out of memory"),
        "case_03": None,
    }
    assert json.loads((tmp_path / "case_00.error.json").read_text())["source"] == cases[0].source
    written = (tmp_path / "case_03.json").stat().st_mtime_ns
    told = dict(alone(pipeline, cases[:4], tmp_path))
    assert not any(told.values())
    assert not list(tmp_path.glob("*.error.json"))
    assert (tmp_path / "case_03.json").stat().st_mtime_ns == written


def test_case_fails_where_the_memory_does_not_hold_one_slice_and_only_there(
    pipeline: CDMPipeline, cases: list[Case], tmp_path: Path
) -> None:
    with out_of_memory_above(pipeline.student, 0):
        failure = dict(alone(pipeline, cases[:1], tmp_path))["case_00"]
    assert failure is not None and failure.kind == "OutOfMemoryError"
    with out_of_memory_above(pipeline.student, 1) as refused:
        assert dict(alone(pipeline, cases[:1], tmp_path)) == {"case_00": None}
    assert refused
    assert results(tmp_path) == ["case_00"]


def test_process_that_joins_does_not_repeat_what_failed_there(pipeline: CDMPipeline, cases: list[Case], tmp_path: Path) -> None:
    outcomes, output = Outcomes(tmp_path / "out", pipeline.class_names), tmp_path / "out"
    with Claims(output / ".claims") as claims:
        run = Run.of(pipeline.model_version, pipeline.default_settings, outcomes)
        assert begin_or_join(run, [cases[0].name], outcomes, claims, "", overwrite=False)
        outcomes.write_failure("case_00", Failure("no", "ValueError", "x", 1))
        joined = start(work, pipeline, cases[:2], output, tmp_path / "journal")
        joined.join(60)
    assert joined.exitcode == 0
    assert results(output) == ["case_00.error", "case_01"]


def test_of_two_that_look_at_a_folder_together_one_begins_and_the_other_joins(pipeline: CDMPipeline, tmp_path: Path) -> None:
    alone(pipeline, [], tmp_path)
    outcomes = Outcomes(tmp_path, pipeline.class_names)
    old = Run.of(pipeline.model_version, pipeline.default_settings, outcomes)
    run = Run.of("another", pipeline.default_settings, outcomes)
    outcomes.write_failure("case_00", Failure("no", "ValueError", "x", 1))
    with Claims(tmp_path / ".claims") as first, Claims(tmp_path / ".claims") as second, Claims(tmp_path / ".claims") as third:
        with pytest.raises(ValueError, match="replace them with --overwrite"):
            begin_or_join(run, ["case_00"], outcomes, third, "", overwrite=False)
        assert begin_or_join(run, ["case_00"], outcomes, first, "", overwrite=True), "who was refused is not at it"
        assert outcomes.failure("case_00") is None
        assert not begin_or_join(run, ["case_00"], outcomes, second, "", overwrite=True)
        with pytest.raises(ValueError, match="other processes are at it"):
            begin_or_join(old, ["case_00"], outcomes, third, "", overwrite=True)


def test_output_folder_that_takes_nothing_ends_the_process_and_keeps_the_case(
    pipeline: CDMPipeline, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr("app_cdm.data.writing.write_atomically", full)
        with pytest.raises(OSError, match=f"cannot write to {tmp_path}: No space left on device"):
            alone(pipeline, cases, tmp_path)
    assert not results(tmp_path)
    assert [path.name for path in (tmp_path / ".claims").iterdir()] == ["run.json"]
    alone(pipeline, cases[:2], tmp_path)
    assert results(tmp_path) == ["case_00", "case_01"]


def test_device_that_failed_counts_as_a_death(pipeline: CDMPipeline, cases: list[Case], tmp_path: Path) -> None:
    def broken() -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    bad = [Case("case_00", "image", broken), *cases[1:2]]  # type: ignore[arg-type]
    with pytest.raises(OSError, match="the device failed at case_00: start this process again"):
        alone(pipeline, bad, tmp_path)
    assert len(list((tmp_path / ".claims").glob("case_00-*.1.claim"))) == 1
    assert not results(tmp_path)


def test_another_model_or_setting_is_refused_and_overwrite_replaces(pipeline: CDMPipeline, cases: list[Case], tmp_path: Path) -> None:
    alone(pipeline, cases[:2], tmp_path)
    outcomes, names = Outcomes(tmp_path, pipeline.class_names), ["case_00", "case_01"]
    run = Run.of("another", pipeline.settings_for("cdm_saliency"), outcomes)
    with Claims(tmp_path / ".claims") as claims:
        with pytest.raises(
            ValueError, match=r"holds results of another run \(model_version '\w+', now 'another'; .*replace them with --overw"
        ):
            begin_or_join(run, names, outcomes, claims, "", overwrite=False)
        assert results(tmp_path) == names
        assert begin_or_join(run, names, outcomes, claims, "", overwrite=True)
        assert not results(tmp_path) + list(tmp_path.glob("*_mask.nii.gz"))
        with Claims(tmp_path / ".claims") as other:
            other.join()
            settings = Run.of("another", pipeline.default_settings, outcomes)
            assert not begin_or_join(run, names, outcomes, claims, "", overwrite=True), "others are at it"
            with pytest.raises(ValueError, match=r"method 'cdm_saliency', now 'student'.*other processes are at it"):
                begin_or_join(settings, names, outcomes, claims, "", overwrite=True)


def test_part_of_the_cases_is_overwritten_with_equal_settings_alone(pipeline: CDMPipeline, cases: list[Case], tmp_path: Path) -> None:
    named = [cases[0], Case("group/case_01.error", cases[1].source, cases[1].read)]
    alone(pipeline, named, tmp_path)
    outcomes, names = Outcomes(tmp_path, pipeline.class_names), [case.name for case in named]
    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with Claims(tmp_path / ".claims") as claims:
        other = Run.of(pipeline.model_version, pipeline.settings_for("cdm_saliency"), outcomes)
        for overwrite in (True, False):
            with pytest.raises(ValueError, match=r"that of 'group/case_01\.error', which .*, would stay: give another --output"):
                begin_or_join(other, names[:1], outcomes, claims, "", overwrite)
        assert all(path.read_bytes() == content for path, content in written.items())
        equal = Run.of(pipeline.model_version, pipeline.default_settings, outcomes)
        assert begin_or_join(equal, names[:1], outcomes, claims, "", overwrite=True)
        assert not (tmp_path / "case_00_mask.nii.gz").exists()
        assert outcomes.find_other(names[:1]) == names[1], "what is not among the cases stays"
        assert begin_or_join(other, names[1:], outcomes, claims, "", overwrite=True), "nothing else is left"


def test_failures_and_files_of_others_are_no_results(pipeline: CDMPipeline, tmp_path: Path) -> None:
    outcomes = Outcomes(tmp_path, pipeline.class_names)
    outcomes.write_failure("bad", Failure("no", "ValueError", "x", 1))
    for name in (".hidden", "folder.json"):
        (tmp_path / name).mkdir()
    for name, text in (("notes", "[1]"), ("broken", "{"), ("numbers", '{"a": 1}'), (".hidden/x", '{"model_version": "1"}')):
        (tmp_path / f"{name}.json").write_text(text)
    assert outcomes.find_other([]) is None


def test_results_of_earlier_versions_without_a_record_count_if_they_fit(pipeline: CDMPipeline, cases: list[Case], tmp_path: Path) -> None:
    alone(pipeline, cases[:1], tmp_path)
    (tmp_path / ".claims" / "run.json").unlink()
    written = (tmp_path / "case_00.json").stat().st_mtime_ns
    alone(pipeline, cases[:2], tmp_path)
    assert (tmp_path / "case_00.json").stat().st_mtime_ns == written
    (tmp_path / ".claims" / "run.json").unlink()
    old = json.loads((tmp_path / "case_01.json").read_text())
    (tmp_path / "case_01.json").write_text(json.dumps({**old, "model_version": "0123456789ab"}))
    with pytest.raises(ValueError, match="another run \\(case_01: model_version '0123456789ab'"):
        alone(pipeline, cases[:2], tmp_path)


def test_one_launch_is_one_run_also_for_what_is_started_again(pipeline: CDMPipeline, tmp_path: Path) -> None:
    outcomes = Outcomes(tmp_path, pipeline.class_names)
    run = Run.of(pipeline.model_version, pipeline.default_settings, outcomes)
    with Claims(tmp_path / ".claims") as claims:
        assert begin_or_join(run, [], outcomes, claims, "launch 1", overwrite=True)
        assert not begin_or_join(run, [], outcomes, claims, "launch 1", overwrite=True)
        assert begin_or_join(run, [], outcomes, claims, "launch 2", overwrite=True)
        assert begin_or_join(run, [], outcomes, claims, "", overwrite=True)
        assert begin_or_join(run, [], outcomes, claims, "", overwrite=True), "processes by themselves are no launch"


def test_first_result_stays(pipeline: CDMPipeline, cases: list[Case], tmp_path: Path) -> None:
    outcomes, volume = Outcomes(tmp_path, pipeline.class_names), cases[0].read()
    result, settings = pipeline.segment(volume), pipeline.default_settings
    assert outcomes.write_result("x", result, volume, settings, 1.0)
    assert not outcomes.write_result("x", result, volume, settings, 2.0)
    assert not outcomes.write_result("y", result, volume, settings, 2.0, is_own=lambda: False)
    assert not outcomes.is_settled("y")
    assert outcomes.result("x")["seconds"] == 1.0  # type: ignore[index]
    outcomes.write_failure("x", Failure("late", "ValueError", "", 1))
    assert outcomes.failure("x") is None
    ignore("x", None)

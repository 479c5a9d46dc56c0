"""Claims: one holder at a time, whoever asks; the dead are found out, the slow are noticed."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from app_cdm.cohort.claims import Claim, Claims, Refusal
from app_cdm.cohort.holder import Holder, this_process
from tests.cohort.processes import start
from tests.waiting import wait_for

NAMES = [f"sub/{number} ü" for number in range(60)]


def take_all(folder: Path, journal: Path) -> None:
    with Claims(folder) as claims:
        taken = [name for name in NAMES if isinstance(claims.take(name), Claim)]
        journal.write_text("\n".join(taken))
        wait_for(lambda: len(list(journal.parent.glob("taken*"))) == 3, "the others")


def take_and_stay(folder: Path, name: str) -> None:
    with Claims(folder) as claims:
        claims.join()
        assert isinstance(claims.take(name), Claim)
        time.sleep(1e6)


def look_on(folder: Path) -> None:
    with Claims(folder):
        time.sleep(1e6)


def foreign(path: Path, age_s: float) -> None:
    """Makes a claim look like one of another machine."""
    holder = Holder.read(path.read_text())
    assert holder is not None
    path.write_text(replace(holder, host="elsewhere").write())
    os.utime(path, (time.time() - age_s,) * 2)


def test_processes_that_race_never_hold_the_same(tmp_path: Path) -> None:
    workers = [start(take_all, tmp_path / "claims", tmp_path / f"taken{number}") for number in range(3)]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    taken = Counter(name for path in tmp_path.glob("taken*") for name in path.read_text().splitlines())
    assert taken == Counter(NAMES)


def test_claim_is_held_until_it_is_let_go_of(tmp_path: Path) -> None:
    with Claims(tmp_path / "claims") as claims:
        claim = claims.take("a")
        assert isinstance(claim, Claim)
        assert claim.attempt == 1
        assert claims.owns(claim)
        assert claims.take("a") is Refusal.HELD
        claims.release(claim)
        again = claims.take("a")
        assert isinstance(again, Claim)
        assert again.attempt == 1, "who lets go has not died"
        claims.forget(again)
    assert not list((tmp_path / "claims").iterdir())


def test_claims_end_with_their_process_also_by_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Claims(tmp_path) as claims:
        claims.take("a")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_claim_of_a_killed_process_goes_to_the_next_at_once_and_is_counted(tmp_path: Path) -> None:
    with Claims(tmp_path, stale_s=1e6) as claims:
        for attempt in (1, 2, 3):
            victim = start(take_and_stay, tmp_path, "a")
            wait_for(lambda attempt=attempt: list(tmp_path.glob(f"a-*.{attempt}.claim")), "the claim")
            assert claims.take("a") is Refusal.HELD
            assert claims.others() == 1
            os.kill(victim.pid or 0, signal.SIGKILL)
            # It stays a zombie until it is joined: dead nonetheless.
            wait_for(lambda: claims.others() == 0, "the death to be noticed")
            victim.join()
        assert claims.take("a") is Refusal.EXHAUSTED
        assert isinstance(claims.take("b"), Claim)
        claims.forget_dead("a")
        assert isinstance(claims.take("a"), Claim)


def test_others_are_those_that_have_joined(tmp_path: Path) -> None:
    with Claims(tmp_path, stale_s=0.6) as other, Claims(tmp_path, stale_s=0.6) as claims:
        assert (claims.others(), other.others()) == (0, 0)
        other.join()
        other.join()
        assert (claims.others(), other.others()) == (1, 0)
        for path in tmp_path.iterdir():
            path.unlink()  # as one that takes them for dead does
        assert claims.others() == 0
        wait_for(lambda: len(list(tmp_path.iterdir())) == 2, "both to say again that they live")
        assert (claims.others(), other.others()) == (1, 0), "they say it as what they were"
    assert not list(tmp_path.iterdir())


def test_what_a_process_left_that_was_killed_before_it_joined_is_removed(tmp_path: Path) -> None:
    with Claims(tmp_path, stale_s=1e6) as claims:
        victim = start(look_on, tmp_path)
        wait_for(lambda: [path.stat().st_size > 0 for path in tmp_path.iterdir()] == [True, True], "the other process")
        assert claims.others() == 0
        assert len(list(tmp_path.iterdir())) == 2, "who lives is left alone"
        victim.kill()
        victim.join()
        assert claims.others() == 0
        assert len(list(tmp_path.iterdir())) == 1


def test_stale_claim_of_another_machine_is_taken_over_and_a_fresh_one_is_not(tmp_path: Path) -> None:
    with Claims(tmp_path, stale_s=30) as other, Claims(tmp_path, stale_s=30) as claims:
        claim = other.take("a")
        assert isinstance(claim, Claim)
        foreign(claim.path, age_s=20)
        assert claims.take("a") is Refusal.HELD
        foreign(claim.path, age_s=40)
        taken = claims.take("a")
        assert isinstance(taken, Claim)
        assert taken.attempt == 2
        assert not other.owns(claim)
        assert claims.owns(taken)
        other.release(claim)  # too late: what the new holder has stays
        assert claims.owns(taken)
        claims.forget(taken)
    assert not list(tmp_path.iterdir())


def test_claim_without_content_is_judged_by_its_age(tmp_path: Path) -> None:
    with Claims(tmp_path, stale_s=30) as claims:
        claim = claims.take("a")
        assert isinstance(claim, Claim)
        claims.abandon(claim)
        claim.path.write_text("")
        assert claims.take("a") is Refusal.HELD
        os.utime(claim.path, (time.time() - 31,) * 2)
        assert isinstance(claims.take("a"), Claim)


def test_heart_beats_while_the_holder_works_and_stops_when_it_is_suspended(tmp_path: Path) -> None:
    holder = start(take_and_stay_short, tmp_path, "a")
    try:
        wait_for(lambda: list(tmp_path.glob("a-*.1.claim")), "the claim")
        with Claims(tmp_path, stale_s=1.2) as claims:
            end = time.monotonic() + 2.5
            while time.monotonic() < end:
                assert claims.take("a") is Refusal.HELD
                time.sleep(0.1)
            os.kill(holder.pid or 0, signal.SIGSTOP)
            wait_for(lambda: isinstance(claims.take("a"), Claim), "the claim to become stale")
            mine = Claim("a", 2, next(tmp_path.glob("a-*.2.claim")))
            os.kill(holder.pid or 0, signal.SIGCONT)
            time.sleep(0.6)
            assert claims.owns(mine)
            assert claims.take("a") is Refusal.HELD
    finally:
        holder.kill()
        holder.join()


def take_and_stay_short(folder: Path, name: str) -> None:
    with Claims(folder, stale_s=1.2) as claims:
        assert isinstance(claims.take(name), Claim)
        time.sleep(1e6)


def test_pid_that_is_used_again_or_means_something_elsewhere_is_not_mistaken() -> None:
    me = this_process()
    assert not me.is_known_dead()
    assert replace(me, started=me.started - 3600).is_known_dead(), "the pid belongs to a younger process"
    assert not replace(me, started=0.0, host="elsewhere").is_known_dead()
    assert not replace(me, started=0.0, space="another boot or container").is_known_dead()


def test_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OSError, match=r"cannot write to .*out: "), Claims(tmp_path / "out" / ".claims"):
        pass
    with pytest.raises(ValueError, match="stale_s = 0: must be positive"):
        Claims(tmp_path, 0)

"""Work in the background takes the network for one call at a time."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from lib.turns import Line, StoppedError, Turns
from tests.waiting import wait_for

GIVEN = torch.ones(1, 2)


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 2))


def test_the_turn_is_held_inside_the_call_alone(network: nn.Sequential) -> None:
    line = Line()
    wrapped = Turns(line.turn).wrap(network)
    seen = []
    wrapped[0].register_forward_hook(lambda *call: seen.append(len(line)))
    assert torch.equal(wrapped(GIVEN), network(GIVEN))
    assert seen == [1] and len(line) == 0


def test_those_who_wait_are_served_in_the_order_in_which_they_came() -> None:
    line, served = Line(), list[int]()

    def ask(number: int) -> None:
        with line.turn():
            served.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    with line.turn():
        for number, thread in enumerate(threads):
            thread.start()
            wait_for(lambda expected=number + 2: len(line) == expected, "a place in the line")
    for thread in threads:
        thread.join()
    assert served == list(range(20))
    assert len(line) == 0


def test_whoever_waits_gets_the_network_after_one_call(network: nn.Sequential) -> None:
    line, calls, working = Line(), list[int](), threading.Event()
    wrapped = Turns(line.turn).wrap(network)

    def during(*call: object) -> None:
        calls.append(len(line))
        working.set()
        if len(calls) == 1:
            wait_for(lambda: len(line) == 2, "somebody else")

    wrapped[0].register_forward_hook(during)
    thread = threading.Thread(target=lambda: [wrapped(GIVEN) for _ in range(3)])
    thread.start()
    assert working.wait(30)
    with line.turn():
        assert len(calls) == 1, "the work in the background went first"
    thread.join()
    assert len(calls) == 3


def test_a_failed_call_gives_the_network_back_and_stop_ends_the_work(network: nn.Sequential) -> None:
    line = Line()
    turns = Turns(line.turn)
    wrapped = turns.wrap(network)
    with pytest.raises(RuntimeError, match="shapes"):
        wrapped(torch.ones(1, 3))
    assert len(line) == 0
    turns.stop.set()
    with pytest.raises(StoppedError):
        wrapped(GIVEN)
    network(GIVEN)

"""Work in the background takes the network for one call at a time."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from torch import nn

from lib.turns import StoppedError, Turns

GIVEN = torch.ones(1, 2)


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 2))


def test_the_lock_is_held_inside_the_call_alone(network: nn.Sequential) -> None:
    lock = threading.Lock()
    wrapped = Turns(lambda: lock).wrap(network)
    seen = []
    wrapped[0].register_forward_hook(lambda *call: seen.append(lock.locked()))
    assert torch.equal(wrapped(GIVEN), network(GIVEN))
    assert seen == [True] and not lock.locked()


def test_whoever_waits_gets_the_network_after_one_call(network: nn.Sequential) -> None:
    lock, done = threading.Lock(), threading.Event()
    wrapped = Turns(lambda: lock).wrap(network)
    wrapped[0].register_forward_hook(lambda *call: time.sleep(0.02))

    def work() -> None:
        while not done.is_set():
            wrapped(GIVEN)

    thread = threading.Thread(target=work)
    thread.start()
    waits = []
    for _ in range(10):
        start = time.perf_counter()
        with lock:
            waits.append(time.perf_counter() - start)
    done.set()
    thread.join()
    assert sorted(waits)[5] < 0.05, waits


def test_a_failed_call_gives_the_network_back_and_stop_ends_the_work(network: nn.Sequential) -> None:
    lock = threading.Lock()
    turns = Turns(lambda: lock)
    wrapped = turns.wrap(network)
    with pytest.raises(RuntimeError, match="shapes"):
        wrapped(torch.ones(1, 3))
    assert not lock.locked()
    turns.stop.set()
    with pytest.raises(StoppedError):
        wrapped(GIVEN)
    network(GIVEN)

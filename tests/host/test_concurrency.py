"""The server answers while it computes, and simultaneous requests give what sequential ones give."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import requests

from tests.host.answers import ask_mask

LONG = {"num_draws": 3, "noise_levels": "0.3, 0.4, 0.5, 0.6, 0.7, 0.8"}
ENOUGH = 10


def test_info_answers_during_inference(url: str) -> None:
    ask_mask(url, "case0")  # warm
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(ask_mask, url, image, LONG, 120) for image in ("case0", "case1")]
        answers = 0
        while answers < ENOUGH and not all(answer.done() for answer in running):  # more would only slow the masks down
            assert requests.get(f"{url}/info/", timeout=30).status_code == 200
            answers += not all(answer.done() for answer in running)
        for answer in running:
            answer.result()
    assert answers >= ENOUGH, f"{answers} answers while two masks were computed; how long each takes: `make benchmark-speed`"


def test_concurrent_masks_equal_sequential_ones(url: str) -> None:
    requests_made = [(f"case{number % 3}", {"seed": number % 2, "noise_levels": "0.5, 0.7"}) for number in range(6)]
    sequential = [ask_mask(url, image, params) for image, params in requests_made]
    with ThreadPoolExecutor(6) as pool:
        concurrent = list(pool.map(lambda job: ask_mask(url, *job), requests_made))
    for (mask, params), (same_mask, same_params) in zip(sequential, concurrent, strict=True):
        assert np.array_equal(mask, same_mask)
        assert params["class_scores"] == same_params["class_scores"] and params["slice_scores"] == same_params["slice_scores"]
    assert any(not np.array_equal(sequential[0][0], mask) for mask, _ in sequential[1:])

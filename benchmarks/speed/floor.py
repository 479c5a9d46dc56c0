"""The floor: what this machine's largest matrix product and convolution reach, and what each path needs at least."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch.nn import functional as F

from app_cdm.pipeline import CDMPipeline
from benchmarks.cost import costs
from benchmarks.speed.part import Options

MATRIX = 2048
CHANNELS, SIDE, BATCH = 128, 32, 32
REPEATS = 5
BYTES = 4  # a float32
COPIED = 2**29  # bytes, more than any cache holds


def measure(options: Options) -> dict[str, Any]:
    """Rates of the machine, multiply-adds and bytes of every method."""
    pipeline = CDMPipeline.from_pretrained(options.model)
    weights = {name: sum(parameter.numel() for parameter in network.parameters()) for name, network in pipeline.networks.items()}
    return {
        "matrix_product": matrix_rate(options.device),
        "convolution": convolution_rate(options.device),
        "bandwidth": bandwidth(options.device),
        "work": {name: asdict(work) for name, work in costs(pipeline).items()},
        "weights": weights,
    }


def matrix_rate(device: torch.device) -> float:
    """Multiply-adds a second of a product of two float32 matrices, the best of some."""
    first, second = torch.randn(MATRIX, MATRIX, device=device), torch.randn(MATRIX, MATRIX, device=device)
    return MATRIX**3 / best_s(lambda: first @ second, device)


def convolution_rate(device: torch.device) -> float:
    """Multiply-adds a second of a 3 x 3 convolution of the U-Net's size, channels last, the best of some."""
    images = torch.randn(BATCH, CHANNELS, SIDE, SIDE, device=device).contiguous(memory_format=torch.channels_last)
    kernels = torch.randn(CHANNELS, CHANNELS, 3, 3, device=device).contiguous(memory_format=torch.channels_last)
    return BATCH * SIDE**2 * CHANNELS**2 * 9 / best_s(lambda: F.conv2d(images, kernels, padding=1), device)


def bandwidth(device: torch.device) -> float:
    """Bytes a second that are read and written when a large array is copied, the best of some."""
    source = torch.zeros(COPIED // BYTES, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED / best_s(lambda: target.copy_(source), device)


def best_s(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of some calls; the first one, which also allocates, does not count."""
    taken = []
    with torch.no_grad():
        for number in range(REPEATS + 1):
            began = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number:
                taken.append(time.perf_counter() - began)
    return min(taken)


def describe(result: dict[str, Any]) -> list[str]:
    """The two rates, and a table of what a positive slice needs."""
    rate, moved = result["matrix_product"], result["bandwidth"]
    lines = [
        f"The largest rates found: {rate / 1e9:.0f} 10^9 multiply-adds a second in a {MATRIX} x {MATRIX} matrix product, "
        f"{result['convolution'] / 1e9:.0f} in a 3 x 3 convolution of {CHANNELS} channels ({BATCH} images of {SIDE} x {SIDE}), float32; "
        f"{moved / 1e9:.1f} GB a second read and written when {COPIED >> 20} MiB are copied. "
        "Weights, which every call reads once: "
        + ", ".join(f"`{name}` {count * BYTES / 1e6:.1f} MB" for name, count in result["weights"].items())
        + ". Activations: each layer reads its input and writes its output once, float32; the memory's rate is the floor of what no cache "
        "holds.",
        "",
        "| method, one positive slice | U-Net evaluations | multiply-adds (10^9) | at least, at the rate of the matrix product "
        "| activations, MB | at the memory's rate |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in result["work"].items():
        count, size = one["multiply_adds"], one["activation_bytes"]
        lines.append(
            f"| `{name}` | {one['evaluations']} | {count / 1e9:.3f} | {1000 * count / rate:.1f} ms "
            f"| {size / 1e6:.0f} | {1000 * size / moved:.1f} ms |"
        )
    return lines

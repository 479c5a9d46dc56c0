"""Pixel InfoNCE and prototypes: against double loops in float64 and the recurrence, and which pixels are drawn."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from app_cdm.cldf.contrast import draw_pixels, pixel_info_nce, prototype_loss, update_prototypes


def unit(count: int, size: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.double), dim=1)


def slow_info_nce(foreground: torch.Tensor, background: torch.Tensor, temperature: float) -> float:
    """Mean over ordered pairs i, j of foreground pixels of -log(e_ij / (e_ij + sum over background k of e_ik))."""
    total, pairs = 0.0, 0
    for i, anchor in enumerate(foreground):
        negatives = sum(math.exp(float(anchor @ other) / temperature) for other in background)
        for j, positive in enumerate(foreground):
            if i != j:
                near = math.exp(float(anchor @ positive) / temperature)
                total, pairs = total - math.log(near / (near + negatives)), pairs + 1
    return total / pairs


def slow_prototype_loss(embeddings: torch.Tensor, own: torch.Tensor, other: torch.Tensor, temperature: float) -> float:
    """Mean of -log(sum over own prototypes / sum over all of exp(cosine / temperature))."""
    total = 0.0
    for pixel in embeddings:
        near, far = (sum(math.exp(float(pixel @ p) / temperature) for p in prototypes) for prototypes in (own, other))
        total -= math.log(near / (near + far))
    return total / len(embeddings)


SIZES = {"positives": st.integers(2, 6), "negatives": st.integers(1, 6), "temperature": st.floats(0.05, 5.0), "seed": st.integers(0, 999)}


@examples(max_examples=30)
@given(**SIZES)
def test_info_nce_is_its_formula(positives: int, negatives: int, temperature: float, seed: int) -> None:
    foreground, background = unit(positives, 3, seed), unit(negatives, 3, seed + 1)
    found = float(pixel_info_nce(foreground, background, temperature))
    assert found == pytest.approx(slow_info_nce(foreground, background, temperature), rel=1e-9)


def test_info_nce_of_sharp_temperature_stays_finite_in_float32() -> None:
    foreground, background = unit(8, 4, 0).float().requires_grad_(True), unit(8, 4, 1).float()
    loss = pixel_info_nce(foreground, background, 0.01)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(slow_info_nce(foreground.detach().double(), background.double(), 0.01), rel=1e-4)
    assert foreground.grad is not None
    assert foreground.grad.isfinite().all()


def test_info_nce_pulls_foreground_together_and_off_the_background() -> None:
    foreground, background = unit(2, 3, 0).requires_grad_(True), unit(4, 3, 1).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda f, b: pixel_info_nce(f, b, 0.5), (foreground, background))
    pixel_info_nce(foreground, background, 0.5).backward()
    assert foreground.grad is not None
    moved, before = F.normalize(foreground.detach() - 0.1 * foreground.grad, dim=1), foreground.detach()
    assert float(moved[0] @ moved[1]) > float(before[0] @ before[1])
    assert float((moved @ background.detach().T).amax(dim=1).sum()) < float((before @ background.detach().T).amax(dim=1).sum())


@pytest.mark.parametrize(("positives", "negatives"), [(0, 0), (1, 5), (5, 0), (0, 5), (1, 0)])
def test_info_nce_without_a_pair_is_zero_and_can_be_differentiated(positives: int, negatives: int) -> None:
    foreground, background = unit(positives, 3, 0).requires_grad_(True), unit(negatives, 3, 1).requires_grad_(True)
    loss = pixel_info_nce(foreground, background, 0.1)
    loss.backward()
    assert float(loss.detach()) == 0.0
    for part in (foreground, background):
        assert part.grad is not None
        assert not part.grad.any()


@examples(max_examples=30)
@given(**SIZES, pixels=st.integers(1, 5))
def test_prototype_loss_is_its_formula(positives: int, negatives: int, temperature: float, seed: int, pixels: int) -> None:
    embeddings, own, other = unit(pixels, 3, seed), unit(positives, 3, seed + 1), unit(negatives, 3, seed + 2)
    found = float(prototype_loss(embeddings, own, other, temperature))
    assert found == pytest.approx(slow_prototype_loss(embeddings, own, other, temperature), rel=1e-9)


def test_prototype_loss_of_no_pixel_is_zero() -> None:
    nothing = unit(0, 3, 0).requires_grad_(True)
    loss = prototype_loss(nothing, unit(2, 3, 1), unit(3, 3, 2), 0.1)
    loss.backward()
    assert float(loss.detach()) == 0.0


@examples(max_examples=30)
@given(st.integers(1, 4), st.integers(0, 8), st.floats(0, 1), st.integers(0, 999))
def test_prototypes_follow_their_recurrence(count: int, pixels: int, decay: float, seed: int) -> None:
    prototypes, embeddings = unit(count, 3, seed), unit(pixels, 3, seed + 1)
    before, members = prototypes.clone(), [[] for _ in range(count)]
    for pixel in embeddings:
        members[max(range(count), key=lambda index: float(pixel @ before[index]))].append(pixel)
    update_prototypes(prototypes, embeddings, decay)
    for index, own in enumerate(members):
        expected = before[index]
        if own:
            expected = decay * expected + (1 - decay) * sum(own) / len(own)
            expected = expected / expected.norm()
        torch.testing.assert_close(prototypes[index], expected, atol=1e-9, rtol=1e-9)


def test_update_changes_a_buffer_through_its_view_and_keeps_no_graph() -> None:
    buffer, embeddings = unit(6, 3, 0).view(2, 3, 3).clone(), unit(9, 3, 1).requires_grad_(True)
    before = buffer.clone()
    update_prototypes(buffer[1], embeddings, 0.5)
    assert torch.equal(buffer[0], before[0])
    assert not torch.equal(buffer[1], before[1])
    assert not buffer.requires_grad


def example(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, 2, (3, 6, 7), generator=generator).to(torch.int8), torch.randn(3, 6, 7, generator=generator)


@examples(max_examples=30)
@given(st.integers(0, 50), st.integers(2, 200), st.floats(0, 1))
def test_pixels_are_seeds_of_their_kind_and_no_more_than_asked_for(seed: int, count: int, hard_share: float) -> None:
    seeds, margin = example(seed)
    for value, chosen in zip((1, 0), draw_pixels(seeds, margin, count, hard_share, torch.Generator().manual_seed(seed)), strict=True):
        assert chosen.dtype == torch.int64
        assert (seeds.flatten()[chosen] == value).all()
        candidates = int((seeds == value).sum())
        assert min(count, candidates) <= len(chosen) <= count


def test_hard_pixels_are_those_on_the_wrong_side() -> None:
    seeds, margin = example()
    count = 13  # the pool of four times as many is the whole of either kind
    assert max(int((seeds == value).sum()) for value in (0, 1)) <= 4 * count
    foreground, background = draw_pixels(seeds, margin, count, 1.0, torch.Generator().manual_seed(0))
    values = margin.flatten()
    assert values[foreground].tolist() == pytest.approx(sorted(values[seeds.flatten() == 1].tolist())[:count])
    assert values[background].tolist() == pytest.approx(sorted(values[seeds.flatten() == 0].tolist(), reverse=True)[:count])


def test_easy_pixels_do_not_look_at_the_margin_and_follow_the_generator() -> None:
    seeds, margin = example()
    one, same, other = (
        draw_pixels(seeds, m, 12, 0.0, torch.Generator().manual_seed(s)) for m, s in ((margin, 0), (-margin, 0), (margin, 1))
    )
    for kind in (0, 1):
        assert torch.equal(one[kind], same[kind])
        assert not torch.equal(one[kind], other[kind])
        assert len(one[kind].unique()) == 12


def test_kind_without_seeds_is_empty() -> None:
    seeds, margin = example()
    seeds[seeds == 1] = -1
    foreground, background = draw_pixels(seeds, margin, 8, 0.5, torch.Generator().manual_seed(0))
    assert len(foreground) == 0
    assert len(background) == 8


@given(st.integers(0, 1000), st.integers(2, 60), st.floats(0.0, 1.0))
def test_no_pixel_is_drawn_twice(seed: int, count: int, hard_share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    seeds = torch.randint(-1, 2, (2, 5, 5), generator=generator).to(torch.int8)
    for chosen in draw_pixels(seeds, torch.randn(2, 5, 5, generator=generator), count, hard_share, generator):
        assert len(chosen.unique()) == len(chosen)
    asked = draw_pixels(torch.ones(1, 9, 9, dtype=torch.int8), torch.zeros(1, 9, 9), 20, hard_share, generator)[0]
    assert len(asked) == 20

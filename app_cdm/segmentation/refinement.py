"""Boundaries that follow the image: what looks like the target, then a random walk between what is sure and what is not."""

from __future__ import annotations

import threading
from functools import cache

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse.linalg import cg, splu
from threadpoolctl import ThreadpoolController

from app_cdm.config import Refinement
from app_cdm.data.body import find_body
from app_cdm.segmentation.appearance import appearance_posterior

STEP_LENGTHS = (2.0, 1.0, 1.0)  # a step to the next slice is farther than one to the next pixel
LEAST_WEIGHT = 1e-4  # of a step across the sharpest edge
OWN_WEIGHT = 1e-7  # of a pixel's own probability, against every step
TOLERANCE = 1e-8
MAX_ITERATIONS = 20_000
DIRECT_PIXELS = 10_000
ONE_AT_A_TIME = threading.Lock()  # the limit is the process's: of two that overlap, the last would restore that of the first
STIFFNESS = 300.0  # where opinions that share nothing but the walk agree most, see docs/benchmark.md


def follow_image(probabilities: np.ndarray, slices: np.ndarray, places: np.ndarray | None = None) -> np.ndarray:
    """`(S, H, W)` probabilities after `appearance_posterior` and `random_walk`; arguments as there.

    Borders move, but nothing new appears: what of a slice is above one half without touching what the map had above one half becomes 0.
    """
    return _without_new(random_walk(appearance_posterior(probabilities, slices), slices, places=places), probabilities > 0.5)


def _without_new(refined: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Sets components of a slice to 0 that hold no pixel of the mask before."""
    result = refined.copy()
    for one, old in zip(result, before, strict=True):
        labels, count = ndimage.label(one > 0.5)
        is_new = np.ones(count + 1, dtype=bool)
        is_new[labels[old]] = is_new[0] = False
        one[is_new[labels]] = 0.0
    return result


def refine(
    maps: np.ndarray, limits: np.ndarray, slices: np.ndarray, refinement: Refinement = "appearance"
) -> tuple[np.ndarray, np.ndarray]:
    """Maps and thresholds whose boundary follows the image.

    Args:
        maps: `(S, H, W)` saliency in [0, 1].
        limits: `(S,)` thresholds; infinite where a slice is not positive.
        slices: `(S, H, W)` images in [-1, 1].
        refinement: `appearance` is `follow_image`, `random_walk` its second part alone, `none` leaves everything as it is.

    Returns:
        `(S, H, W)` probabilities, and the threshold of one half where there was one above 0; other slices stay empty. A slice whose mask
        would be lost keeps its map: it is positive, so its mask cannot be empty.
    """
    if refinement == "none":
        return maps, limits
    boundary = follow_image if refinement == "appearance" else random_walk
    usable = np.isfinite(limits) & (limits > 0)
    refined = np.zeros_like(maps)
    if usable.any():
        probabilities = np.clip(maps[usable] / (2 * limits[usable][:, None, None]), 0.0, 1.0)
        moved = boundary(probabilities, slices[usable], places=np.flatnonzero(usable))
        is_lost = (probabilities > 0.5).any(axis=(1, 2)) & ~(moved > 0.5).any(axis=(1, 2))
        moved[is_lost] = probabilities[is_lost]
        refined[usable] = moved
    return refined, np.where(usable, 0.5, np.inf)


def random_walk(
    probabilities: np.ndarray,
    slices: np.ndarray,
    sure_foreground: float = 0.75,
    sure_background: float = 0.25,
    stiffness: float = STIFFNESS,
    places: np.ndarray | None = None,
) -> np.ndarray:
    """Probability that a random walk over the image reaches sure foreground before sure background (Grady 2006, equation 8).

    A step between neighbours of intensities a and b has the weight exp(-stiffness (a - b)^2) / d^2, with d the step's length.

    *Differs from the paper:* every undecided pixel is pulled to its own probability by a weight so small that it matters only where
    no walk leads out. scikit-image's `random_walker` is not used because, in the pinned version, a lone sure pixel shifts the
    answers of all that follow it, which happens wherever a pixel of the scalp stands alone in air.

    Args:
        probabilities: `(S, H, W)` in [0, 1], the positive slices of one volume in order.
        slices: `(S, H, W)` images in [-1, 1].
        sure_foreground: probability from which a pixel is sure to be the target.
        sure_background: probability up to which it is sure not to be.
        stiffness: how much a step of intensity hinders the walk.
        places: `(S,)` whole numbers, which slices of the volume these are: no step leads across those that are left out. None where
            each follows the one before.

    Returns:
        `(S, H, W)` float32; unchanged where nothing is sure or nothing undecided, 0 outside the body.
    """
    body = find_body(slices)
    result = np.asarray(probabilities * body, dtype=np.float32)
    box = _box(result > sure_background)
    values, inside = result[box].astype(np.float64), body[box]
    is_foreground, is_background = inside & (values >= sure_foreground), inside & (values <= sure_background)
    undecided = inside & ~is_foreground & ~is_background
    if not (is_foreground.any() and is_background.any() and undecided.any()):
        return result
    is_next = np.diff((np.arange(len(slices)) if places is None else places)[box[0]]) == 1
    system, flow = _laplacian(slices[box].astype(np.float64), inside, undecided, is_foreground, is_next, stiffness)
    own = values[undecided]
    values[undecided] = np.clip(_solve(system, flow + OWN_WEIGHT * own, own), 0.0, 1.0)
    values[is_foreground], values[is_background] = 1.0, 0.0
    result[box] = values * inside
    return result


def _solve(system: sparse.csr_matrix, right: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Solves the symmetric, positive definite system: directly where that is fast, else by conjugate gradients.

    The factors of a system in three dimensions grow with the square of its pixels; the cost of an iteration only with their number.
    Its scalar products are so short that sharing them among the threads of NumPy's BLAS costs more than it saves, above all where those
    threads wait for a processor that runs a network.

    Raises:
        ArithmeticError: no convergence, which a system like this one cannot cause.
    """
    if len(start) <= DIRECT_PIXELS:
        factors = splu(system.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
        return np.asarray(factors.solve(right))
    jacobi = sparse.diags(1.0 / system.diagonal())
    with ONE_AT_A_TIME, _thread_pools().limit(limits=1, user_api="blas"):
        found, failed = cg(system, right, x0=start, rtol=TOLERANCE, atol=0.0, maxiter=MAX_ITERATIONS, M=jacobi)
    if failed:
        raise ArithmeticError(f"the random walk over {len(start)} pixels has not converged: set refinement = 'none', and please report it")
    return np.asarray(found)


@cache
def _thread_pools() -> ThreadpoolController:
    """The thread pools of the libraries in this process; looking for them takes some milliseconds."""
    return ThreadpoolController()


def _laplacian(
    image: np.ndarray, inside: np.ndarray, undecided: np.ndarray, is_foreground: np.ndarray, is_next: np.ndarray, stiffness: float
) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Laplacian among the undecided pixels with their own pull, and the weight of each one's steps into sure foreground.

    `is_next` says of each slice but the first whether it follows the one before.
    """
    number = np.full(inside.shape, -1, dtype=np.int64)
    size = int(undecided.sum())
    number[undecided] = np.arange(size)
    diagonal, flow = np.zeros(size), np.zeros(size)
    rows, columns, weights = [], [], []
    for axis, length in enumerate(STEP_LENGTHS):
        here, there = (tuple(part if a == axis else slice(None) for a in range(3)) for part in (slice(None, -1), slice(1, None)))
        is_edge = inside[here] & inside[there]
        if axis == 0:
            is_edge &= is_next[:, None, None]
        step = image[here] - image[there]
        weight = np.maximum(np.exp(-stiffness * step**2), LEAST_WEIGHT)[is_edge] / length**2
        first, second = number[here][is_edge], number[there][is_edge]
        for one, other, ends in ((first, second, is_foreground[there][is_edge]), (second, first, is_foreground[here][is_edge])):
            leaves = one >= 0
            diagonal += np.bincount(one[leaves], weight[leaves], size)
            flow += np.bincount(one[leaves & ends], weight[leaves & ends], size)
            within = leaves & (other >= 0)
            rows.append(one[within])
            columns.append(other[within])
            weights.append(-weight[within])
    between = sparse.coo_matrix((np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))), shape=(size, size))
    return (between + sparse.diags(diagonal + OWN_WEIGHT)).tocsr(), flow


def _box(wanted: np.ndarray) -> tuple[slice, ...]:
    """Bounding box of what is not sure background, one pixel wider: outside of it a walk has ended already."""
    places = np.argwhere(wanted)
    if not len(places):
        return (slice(0, 0),) * wanted.ndim
    low, high = places.min(axis=0), places.max(axis=0) + 1
    return tuple(slice(max(0, int(first) - 1), int(last) + 1) for first, last in zip(low, high, strict=True))

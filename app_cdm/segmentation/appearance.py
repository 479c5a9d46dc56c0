"""Masks that look like the target: intensities inside and around it, with the map as the prior of where it is."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from app_cdm.data.body import find_body

# The first three are where opinions that share nothing but the refinement agree most, see docs/benchmark.md.
PRIOR_BLUR = 2.5 / 64  # of the side of a slice: how far off a map's border may be
PRIOR_WEIGHT = 0.5  # of the map's log odds, which networks overstate
REACH = 4 / 64  # of the side of a slice: how far around the map the background is learned
BINS = 32
BIN_BLUR = 2.0
LEAST_DENSITY = 1e-4
LEAST_PRIOR = 0.01
ROUNDS = 5


def appearance_posterior(
    probabilities: np.ndarray,
    slices: np.ndarray,
    prior_blur: float = PRIOR_BLUR,
    prior_weight: float = PRIOR_WEIGHT,
    reach: float = REACH,
) -> np.ndarray:
    """Posterior of the target given each pixel's place and intensity, by expectation maximisation (Dempster et al. 1977).

    A mixture of two densities, target and what is near it, whose mixing proportions vary in space as in Ashburner and Friston 2005:
    they are the map, blurred because it was made by networks that do not resolve a border better. The densities are smoothed histograms
    (as in Boykov and Jolly 2001) of all given slices together, so nothing is assumed of the target but that it differs from what is
    around it.

    Args:
        probabilities: `(S, H, W)` in [0, 1], the positive slices of one volume.
        slices: `(S, H, W)` images in [-1, 1].
        prior_blur: standard deviation of the blur, as a share of the longer side of a slice.
        prior_weight: what the log odds of the blurred map are multiplied by.
        reach: how far from a probability above one quarter, blurred or not, the background is learned, as a share of the longer side.

    Returns:
        `(S, H, W)` float32 in [0, 1]; 0 farther away than the reach and outside the body; as it was where the map is nowhere above
        one quarter.
    """
    side = max(probabilities.shape[1:])
    body = find_body(slices)
    prior = ndimage.gaussian_filter(probabilities * body, (0.0, prior_blur * side, prior_blur * side))
    # Blurred alone, a small target would be nowhere above one quarter.
    near = _within((prior > 0.25) | (probabilities * body > 0.25), max(1, round(reach * side))) & body
    if not near.any():
        return np.asarray(probabilities * body, dtype=np.float32)
    share = np.clip(prior[near].astype(np.float64), LEAST_PRIOR, 1 - LEAST_PRIOR)
    bins = np.clip(((slices[near] + 1) / 2 * BINS).astype(np.int64), 0, BINS - 1)
    log_odds = prior_weight * np.log(share / (1 - share))
    posterior = prior[near].astype(np.float64)
    for _ in range(ROUNDS):
        evidence = np.log(_density(bins, posterior) / _density(bins, 1 - posterior))
        posterior = 1 / (1 + np.exp(-(log_odds + evidence[bins])))
    result = np.zeros(probabilities.shape, dtype=np.float32)
    result[near] = posterior
    return result


def _density(bins: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`(BINS,)` smoothed share of the weight in each bin of intensity; nowhere 0."""
    counts = ndimage.gaussian_filter1d(np.bincount(bins, weights, BINS) + 1e-3, BIN_BLUR, mode="nearest")
    return np.asarray(counts / counts.sum() + LEAST_DENSITY)


def _within(places: np.ndarray, steps: int) -> np.ndarray:
    """What is at most so many pixel steps away within its own slice."""
    cross = ndimage.generate_binary_structure(2, 1)[None]
    return np.asarray(ndimage.binary_dilation(places, structure=cross, iterations=steps))

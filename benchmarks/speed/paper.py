"""What the measured figures come to for a hospital and for a national archive: arithmetic, nothing is measured here."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

SIZES = {"hospital": 10**5, "national archive": 10**8}
NIGHT_H, YEAR_H = 12, 365 * 24
CORES_A_NODE = 64
NETWORK_BYTES_A_S = 1.25e9  # ten gigabits a second
NEEDED = ("cohort", "growth")


def describe(results: Mapping[str, dict[str, Any]]) -> list[str]:
    """A table, and what gives way first; nothing where a part that it needs is missing.

    Args:
        results: part -> its result.
    """
    if any(name not in results for name in NEEDED):
        return []
    cohort, cases = results["cohort"], results["growth"]["cases"][-1]
    rate = statistics.mean(item["one"]["volumes_per_s"] for item in cohort["rounds"])
    image, result = cohort["bytes"]["image"], cohort["bytes"]["result"]
    lines = [
        f"From the rates above, `{cohort['method']}` on one core of that machine: {rate:.2f} volumes a second, "
        f"{image / 1e6:.1f} MB read and {result / 1e3:.0f} kB written a volume. One series a study is taken; cores are counted as "
        "independent, as two of them were measured. Nothing of this size has been run.",
        "",
        "| | " + " | ".join(f"{name}, {count:,} studies".replace(",", " ") for name, count in SIZES.items()) + " |",
        "|---|" + "---|" * len(SIZES),
    ]
    hours = {name: count / rate / 3600 for name, count in SIZES.items()}
    rows = {
        "core hours": [f"{value:,.0f}".replace(",", " ") for value in hours.values()],
        f"cores for one night ({NIGHT_H} h)": [f"{value / NIGHT_H:,.0f}".replace(",", " ") for value in hours.values()],
        f"nodes of {CORES_A_NODE} cores for a week": [f"{max(1, value / (7 * 24) / CORES_A_NODE):.0f}" for value in hours.values()],
        "images read": [_bytes(count * image) for count in SIZES.values()],
        "hours of a 10 Gbit/s line": [f"{count * image / NETWORK_BYTES_A_S / 3600:.1f}" for count in SIZES.values()],
        "masks and scores written": [_bytes(count * result) for count in SIZES.values()],
    }
    lines += [f"| {name} | " + " | ".join(values) + " |" for name, values in rows.items()]
    listing = cases["cases"]
    lines += [
        "",
        "What gives way first:",
        "",
        f"- *The label server* is for the cases that people look at: measured to {listing} in one folder. A hospital gives it a filter "
        "(modality, date) rather than all studies; an archive does not point it at everything.",
        "- *One output folder.* A cohort keeps a result and a claim per case beside each other; file systems list 10^5 names in seconds, "
        "and 10^8 not at all. An archive is run as many cohorts, by year or site, each with its CSV and its folder; a case is in one.",
        "- *The PACS.* Series are fetched whole over DICOMweb; at the rate of one node of "
        f"{CORES_A_NODE} cores that is {CORES_A_NODE * rate * image / 1e6:.0f} MB a second, which a hospital's PACS gives at night and an "
        "archive's storage gives to many nodes only beside DICOMweb, from files.",
        "- *Nodes that fail.* Claims need a shared file system that creates files exclusively. Without one (object stores), give every "
        "node its own CSV.",
        "- *Review.* Nobody reads 10^8 masks: the summary's scores and uncertainties choose what is looked at.",
    ]
    return lines


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} PB"

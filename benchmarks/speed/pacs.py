"""What grows with the number of series in a PACS: answers of a real server on a real Orthanc."""

from __future__ import annotations

import io
import statistics
import time
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import requests
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from benchmarks.speed.growth import LIMIT_S, REPEATS, SCALE, Session, answer_table, serving, slowest_answer
from benchmarks.speed.part import Options
from demo.orthanc import Orthanc, OrthancError, find_orthanc

NUM_SERIES = (10, 1_000, 20_000)
ASKED_S = 20.0  # questions go on at least so long
BATCH = 500
SIDE = 16
UPLOAD_TIMEOUT_S = 600


def measure(options: Options) -> dict[str, Any]:
    """Runs everything, or says that there is no Orthanc; about five minutes on two cores."""
    try:
        find_orthanc()
    except OrthancError as error:
        return {"scale": SCALE, "missing": str(error), "rows": []}
    rows, stored = list[dict[str, Any]](), 0
    with Orthanc(options.run / "orthanc") as pacs:
        stored = len(requests.get(f"{pacs.address}/series", timeout=UPLOAD_TIMEOUT_S).json())  # of an interrupted run
        for count in dict.fromkeys(max(10, round(number * SCALE)) for number in NUM_SERIES):
            for batch in batches(stored, count):
                requests.post(f"{pacs.address}/instances", data=batch, timeout=UPLOAD_TIMEOUT_S).raise_for_status()
            stored = max(stored, count)
            with serving(pacs.url, options, options.run / f"server_{count}", "--classes", "tumor") as (session, start_s):
                rows.append({"series": stored, "start_s": start_s, "listing_s": listing_s(pacs), **ask_everything(session)})
    return {"scale": SCALE, "rows": rows}


def batches(begin: int, end: int) -> Iterator[bytes]:
    """Archives of small MR series of one instance each, every fourth of them of the patient before."""
    for first in range(begin, end, BATCH):
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as files:
            for number in range(first, min(first + BATCH, end)):
                files.writestr(f"{number}.dcm", instance(number))
        yield archive.getvalue()


def instance(number: int) -> bytes:
    """One instance; its identifiers follow from the number."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["instance", str(number)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128, is_implicit_VR=False, is_little_endian=True)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.PatientID, data.PatientName, data.Modality = f"benchmark-{number - number % 4}", "Benchmark", "MR"
    data.StudyInstanceUID, data.SeriesInstanceUID = (generate_uid(entropy_srcs=[kind, str(number)]) for kind in ("study", "series"))
    data.InstanceNumber, data.ImagePositionPatient = 1, [0, 0, 0]
    data.ImageOrientationPatient, data.PixelSpacing, data.SliceThickness = [1, 0, 0, 0, 1, 0], [1, 1], 1
    data.Rows = data.Columns = SIDE
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.PixelData = np.random.default_rng(number).integers(0, 1000, (SIDE, SIDE), dtype=np.uint16).tobytes()
    file = io.BytesIO()
    data.save_as(file, write_like_original=False)
    return file.getvalue()


def listing_s(pacs: Orthanc) -> float:
    """What the PACS itself takes for the list of its series."""
    began = time.perf_counter()
    requests.get(f"{pacs.url}/series", timeout=UPLOAD_TIMEOUT_S).raise_for_status()
    return time.perf_counter() - began


def ask_everything(session: Session) -> dict[str, Any]:
    """Median and longest seconds of each kind of question, asked in turns."""
    questions: dict[str, Callable[[], float]] = {
        "`GET /info/`": lambda: session.seconds("GET", "/info/"),
        "`GET /datastore/`": lambda: session.seconds("GET", "/datastore/"),
        "`GET /tagging/cases`, a page": lambda: session.seconds("GET", "/tagging/cases?state=open"),
        "`GET /tags/summary`": lambda: session.seconds("GET", "/tags/summary"),
        "`POST /activelearning/first`": lambda: session.seconds("POST", "/activelearning/first", json={}),
        "`POST /activelearning/untagged`": lambda: session.seconds("POST", "/activelearning/untagged", json={}),
        "`POST /activelearning/uncertain`": lambda: session.seconds("POST", "/activelearning/uncertain", json={}),
    }
    seconds: dict[str, list[float]] = {question: [] for question in questions}
    began = time.monotonic()
    while time.monotonic() < began + ASKED_S or min(map(len, seconds.values())) < REPEATS:
        for question, ask in questions.items():
            seconds[question].append(ask())
    answers = {question: {"median_s": statistics.median(found), "max_s": max(found)} for question, found in seconds.items()}
    return {"answers": answers, "peak_mib": session.peak_mib()}


def describe(result: dict[str, Any]) -> list[str]:
    """The table."""
    if not result["rows"]:
        return [f"Not measured: {result['missing']}."]
    rows = result["rows"]
    longest_s, question = slowest_answer(rows[-1])
    return [
        *([] if result["scale"] == 1 else [f"**A quick run at {result['scale']:g} of the full size.**", ""]),
        "Milliseconds until a server on an Orthanc beside it has answered, median, the longest in brackets; small series of one instance.",
        "The list of series is renewed behind the back of whoever asks, as often as it takes a tenth of the time at most: not within the",
        f"{ASKED_S:.0f} seconds of questions where it takes longer than two. With {rows[-1]['series']} series the slowest answer took",
        f"{longest_s:.2f} s ({question}); the limit is {LIMIT_S:g} s. A server's first answer waits for its first list.",
        "",
        *answer_table(
            rows, "series", {"start of the server, to the first answer": "start_s", "the list of series, by Orthanc itself": "listing_s"}
        ),
    ]

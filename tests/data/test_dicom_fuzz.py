"""Damaged DICOM files: an image or a refusal, never another error, never a hang."""

from __future__ import annotations

import io
import tempfile
from functools import lru_cache
from pathlib import Path

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app_cdm.data.volume import VolumeError, find_dicom_series, read_volume
from tests.data.dicom_files import plane, write_frames
from tests.data.test_dicom_frames import made

pytestmark = [
    # ITK's compiled modules warn while they load, and crash where that warning is an error.
    pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning"),
    # pydicom, numpy and Pillow warn of what is damaged.
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::DeprecationWarning"),
]
FOLDER = Path(pydicom.__file__).parent / "data" / "test_files"
HEADER_BYTES = 3000
NAMES = ("MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "JPEG-lossy.dcm", "frames")


@lru_cache
def content(name: str) -> bytes:
    if name != "frames":
        return (FOLDER / name).read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        write_frames(Path(folder) / "one.dcm", made(3), [plane(index) for index in range(3)])
        return (Path(folder) / "one.dcm").read_bytes()


def read(data: bytes) -> None:
    """Reads a file as a request would, and lists it as the server does."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "damaged.dcm"
        path.write_bytes(data)
        for source in (path, Path(folder)):
            try:
                volume = read_volume(source)
            except VolumeError as error:
                assert str(error).strip()
            else:
                assert volume.array.ndim == 3 and volume.affine.shape == (4, 4)
        find_dicom_series(folder)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(share=st.floats(0.0, 1.0))
def test_truncated(name: str, share: float) -> None:
    whole = content(name)
    read(whole[: int(share * len(whole))])


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(flips=st.lists(st.tuples(st.floats(0.0, 1.0), st.integers(0, 7)), min_size=1, max_size=30), in_header=st.booleans())
def test_flipped_bits(name: str, flips: list[tuple[float, int]], in_header: bool) -> None:
    damaged = bytearray(content(name))
    first, last = 132, min(HEADER_BYTES, len(damaged)) if in_header else len(damaged)
    for place, bit in flips:
        damaged[first + int(place * (last - first - 1))] ^= 1 << bit
    read(bytes(damaged))


def test_a_small_file_that_claims_to_be_huge() -> None:
    data = pydicom.dcmread(FOLDER / "MR_small.dcm")
    for rows, frames in ((65535, None), (64, 2_000_000)):
        data.Rows = data.Columns = rows
        if frames:
            data.NumberOfFrames = frames
        packed = io.BytesIO()
        data.save_as(packed)
        read(packed.getvalue())

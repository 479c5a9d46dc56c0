"""Every file that pydicom ships for its own tests, alone in a folder: a right answer, or a refusal that says why."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.pixel_data_handlers.util import convert_color_space
from pydicom.uid import JPEG2000, JPEG2000Lossless, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLosslessSV1

from app_cdm.data.volume import VolumeError, find_dicom_series, read_volume

pytestmark = [
    # ITK's compiled modules warn while they load, and crash where that warning is an error.
    pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning"),
    # Some of the files are broken on purpose.
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.timeout(300),
]
FOLDER = Path(pydicom.__file__).parent / "data" / "test_files"
FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file())
LUMINANCE = np.array([0.2125, 0.7154, 0.0721])

JPEG = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLosslessSV1, JPEG2000, JPEG2000Lossless)
LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEG2000)

# What must be readable, of those whose reading takes a decoder or a byte order of its own; the others may be refused or not.
MUST_BE_READ = {
    *("MR_small.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "MR_small_expb.dcm", "MR_small_padded.dcm"),
    *("MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "CT_small.dcm", "693_J2KI.dcm"),
    *("J2K_pixelrep_mismatch.dcm", "JPEG-lossy.dcm", "JPEG2000.dcm", "JPGExtended.dcm", "SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle.dcm"),
    *("image_dfl.dcm", "ExplVR_BigEnd.dcm", "SC_rgb_small_odd_big_endian.dcm", "SC_rgb_jpeg_dcmtk.dcm"),
}


def expected(path: Path) -> np.ndarray:
    """`(columns, rows)` in rescaled units, by pydicom's decoders; by SimpleITK where it has none."""
    data = pydicom.dcmread(path)
    try:
        stored = data.pixel_array
    except (RuntimeError, NotImplementedError, OSError, AttributeError):
        pixels = np.squeeze(sitk.GetArrayFromImage(sitk.ReadImage(str(path)))).astype(np.float64)
        return np.asarray((pixels @ LUMINANCE if pixels.ndim == 3 else pixels).T)
    if stored.ndim == 3:
        rgb = stored if data.PhotometricInterpretation in ("RGB", "YBR_RCT") else convert_color_space(stored, "YBR_FULL", "RGB")
        return np.asarray((rgb @ LUMINANCE).T)
    return np.asarray(stored.T * float(data.get("RescaleSlope") or 1) + float(data.get("RescaleIntercept") or 0))


@pytest.mark.parametrize("name", FILES)
def test_file_alone_in_a_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "alone"
    folder.mkdir()
    shutil.copy(FOLDER / name, folder)
    try:
        volume = read_volume(folder)
    except VolumeError as error:
        assert name not in MUST_BE_READ, error
        assert ": " in str(error) and len(str(error)) > 40, "says what is wrong and what to do"
        return
    assert volume.array.shape[2] == len(find_dicom_series(folder)[0].files) == 1
    wanted, data = expected(FOLDER / name), pydicom.dcmread(FOLDER / name)
    if data.get("SamplesPerPixel") == 3 and data.file_meta.TransferSyntaxUID in JPEG:
        # What colours these files mean is a matter of the decoder: they were made for that.
        assert np.corrcoef(volume.array.ravel(), wanted.ravel())[0, 1] > 0.8
    else:
        is_lossy = data.file_meta.TransferSyntaxUID in LOSSY  # two decoders round differently
        np.testing.assert_allclose(volume.array[:, :, 0], wanted, atol=2.0 if is_lossy else 1e-2, rtol=1e-6)


def test_twelve_bit_jpeg_has_its_published_pixels() -> None:
    """Pixels that pydicom's own tests name for these files, as several decoders give them."""
    for name in ("JPEG-lossy.dcm", "JPGExtended.dcm"):
        array = read_volume(FOLDER / name).array
        assert (array[140, 420, 0], array[120, 230, 0]) == (244, 95)


def test_all_of_them_in_one_folder() -> None:
    """Broken files hide none of the others."""
    found = find_dicom_series(FOLDER)
    assert len(found) >= 25
    usable = [series for series in found if not series.problem]
    assert {"CT", "MR", "US"} <= {series.modality for series in usable}
    assert any("several frames" in series.problem for series in found)

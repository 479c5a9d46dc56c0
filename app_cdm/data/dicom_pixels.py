"""Pixels of DICOM files: pydicom where they are stored plainly, GDCM inside ITK where they are compressed or coloured."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import itk
import numpy as np
import pydicom
from monai.data.image_reader import ITKReader
from pydicom.encaps import generate_pixel_data_frame
from pydicom.pixel_data_handlers.util import convert_color_space
from pydicom.uid import MRImageStorage, RLELossless

from app_cdm.data.dicom_header import SliceHeader
from app_cdm.data.grid import VolumeError, reading

PIXEL_TAGS = (
    *("SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PlanarConfiguration", "SOPInstanceUID"),
)
LUMINANCE = np.array([0.2125, 0.7154, 0.0721])
MONOCHROME = ("MONOCHROME1", "MONOCHROME2")


def read_stack(headers: Sequence[SliceHeader]) -> np.ndarray:
    """The pixels of ordered slices as float32 `(columns, rows, slices)`, each in the units of its own rescale; colour as luminance.

    Raises:
        VolumeError: a file is broken or in a syntax that nothing here can decode.
    """
    array = np.empty((*headers[0].shape, len(headers)), dtype=np.float32)
    places: dict[Path, list[int]] = {}
    for place, header in enumerate(headers):
        places.setdefault(header.path, []).append(place)
    for path, wanted in places.items():
        with reading(path, "DICOM"):
            if headers[wanted[0]].num_frames == 1:
                array[..., wanted[0]] = _read_slice(headers[wanted[0]])
                continue
            frames = _Frames(path)
            for place in wanted:
                header = headers[place]
                with _decoding(header, frames.data):
                    array[..., place] = (frames.stored(header.frame) * header.slope + header.intercept).T.reshape(header.shape)
    return array


def _read_slice(header: SliceHeader) -> np.ndarray:
    data = pydicom.dcmread(header.path)
    if "PixelData" not in data:
        raise VolumeError(f"{header.name}: its pixels are missing or cut off: export the file again")
    if _is_plain(data):
        return np.asarray((_stored(data) * header.slope + header.intercept).T.reshape(header.shape))
    if _is_plain_colour(data):
        with _decoding(header, data):
            return _luminance(data).T.reshape(header.shape)
    try:
        if data.get("PhotometricInterpretation") != "MONOCHROME1":
            return _pixels_by_itk(header.path, header).reshape(header.shape)
        data.PhotometricInterpretation = "MONOCHROME2"  # GDCM would invert the pixels
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "slice.dcm"
            data.save_as(path)
            return _pixels_by_itk(path, header).reshape(header.shape)
    except RuntimeError:
        with _decoding(header, data):
            return _pixels_by_pydicom(data, header).reshape(header.shape)


@contextmanager
def _decoding(header: SliceHeader, data: pydicom.Dataset) -> Iterator[None]:
    """Says of pixels that no decoder takes which syntax they are in; what pydicom says is about its own installation."""
    try:
        yield
    except VolumeError:
        raise
    except Exception as error:
        syntax = data.file_meta.TransferSyntaxUID.name
        raise VolumeError(f"{header.name}: its pixels ({syntax}) are damaged or cannot be decoded: save the image uncompressed") from error


def _is_plain(data: pydicom.Dataset) -> bool:
    """Whether pixels lie in the file as whole grey numbers."""
    return (
        _needs_no_codec(data)
        and str(data.get("PhotometricInterpretation", "")) in MONOCHROME
        and data.get("SamplesPerPixel", 1) == 1
        and data.get("BitsAllocated") in (8, 16, 32)
        and data.get("HighBit", data.get("BitsStored", 0) - 1) == data.get("BitsStored", 0) - 1
        and 0 < data.get("BitsStored", 0) <= data.BitsAllocated
    )


def _is_plain_colour(data: pydicom.Dataset) -> bool:
    """Whether colours are stored uncompressed or run-length encoded; GDCM mixes up those of 16 and 32 bits."""
    return _needs_no_codec(data) and data.get("SamplesPerPixel") == 3


def _needs_no_codec(data: pydicom.Dataset) -> bool:
    """Uncompressed or run-length encoded; GDCM takes minutes over some cut-off run-length files."""
    syntax = data.file_meta.TransferSyntaxUID
    return not syntax.is_compressed or syntax == RLELossless


def _luminance(data: pydicom.Dataset) -> np.ndarray:
    """Brightness `(rows, columns)` of colours, by the weights of ITU-R BT.709 as ITK takes them."""
    pixels = data.pixel_array
    if str(data.PhotometricInterpretation).startswith("YBR_FULL"):
        pixels = convert_color_space(pixels, "YBR_FULL", "RGB")
    return np.asarray(pixels.astype(np.float64) @ LUMINANCE)


def _stored(data: pydicom.Dataset) -> np.ndarray:
    """Stored values, float64; bits above those that are in use, which old files fill with overlays, do not count."""
    unused = int(data.BitsAllocated) - int(data.BitsStored)
    pixels = data.pixel_array
    return np.asarray((pixels << unused) >> unused, dtype=np.float64)


def _pixels_by_itk(path: Path, header: SliceHeader) -> np.ndarray:
    """GDCM leaves the rescale of plain MR objects out (their slope may change from slice to slice); it is applied here then."""
    image_io = itk.GDCMImageIO.New()
    reader = ITKReader(pixel_type=itk.F, imageio=image_io)
    array, _ = reader.get_data(reader.read(path))
    if (image_io.GetRescaleSlope(), image_io.GetRescaleIntercept()) == (1.0, 0.0):
        return np.asarray(array * np.float32(header.slope) + np.float32(header.intercept))
    return np.array(array)


def _pixels_by_pydicom(data: pydicom.Dataset, header: SliceHeader) -> np.ndarray:
    """Stored values from pydicom's own decoders, rescaled."""
    stored = data.pixel_array
    if stored.ndim != 2:
        raise VolumeError(f"{header.path.name}: colour pixels in a syntax that cannot be decoded: save the image uncompressed")
    return np.asarray(stored.T * header.slope + header.intercept)


class _Frames:
    """Frames of one file; compressed ones are decoded one by one.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.data = pydicom.dcmread(path)
        self._plain: np.ndarray | None = None
        self._packed: list[bytes] = []
        if "PixelData" not in self.data:
            raise VolumeError(f"{path.name}: its pixels are missing or cut off: export the file again")
        if str(self.data.get("PhotometricInterpretation", "")) not in MONOCHROME:
            raise VolumeError(f"{path.name}: several frames in colour: send one grey volume")
        if _is_plain(self.data):
            self._plain = _stored(self.data)
        elif self.data.file_meta.TransferSyntaxUID.is_encapsulated:
            self._packed = list(generate_pixel_data_frame(self.data.PixelData, int(self.data.NumberOfFrames)))
        else:
            raise VolumeError(f"{path.name}: {self.data.get('BitsAllocated')} bits a pixel in several frames: save it with 16")

    def stored(self, frame: int) -> np.ndarray:
        """Stored values of a frame, `(rows, columns)`."""
        if self._plain is not None:
            return np.asarray(self._plain.reshape(-1, *self._plain.shape[-2:])[frame])
        # GDCM knows one scale for all frames and inverts MONOCHROME1, and pydicom knows not every syntax: the frame alone, as a plain
        # file, has none of these troubles.
        single = pydicom.Dataset()
        for tag in PIXEL_TAGS:
            if tag in self.data:
                setattr(single, tag, self.data[tag].value)
        single.PhotometricInterpretation = "MONOCHROME2"
        single.SOPClassUID = MRImageStorage
        single.file_meta = pydicom.dataset.FileMetaDataset()
        single.file_meta.MediaStorageSOPClassUID = MRImageStorage
        single.file_meta.MediaStorageSOPInstanceUID = single.SOPInstanceUID
        single.file_meta.TransferSyntaxUID = self.data.file_meta.TransferSyntaxUID
        single.PixelData = pydicom.encaps.encapsulate([self._packed[frame]])
        single["PixelData"].is_undefined_length = True
        single.is_little_endian, single.is_implicit_VR = True, False
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "frame.dcm"
            pydicom.dcmwrite(path, single, write_like_original=False)
            reader = ITKReader(pixel_type=itk.F, imageio=itk.GDCMImageIO.New())
            array, _ = reader.get_data(reader.read(path))
        return np.asarray(array, dtype=np.float64).reshape(int(single.Columns), int(single.Rows)).T

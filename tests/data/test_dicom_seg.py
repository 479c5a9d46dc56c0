"""Masks and maps as DICOM: read back voxel for voxel by a second reader, checked by a validator, right for every orientation."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom import Dataset

from app_cdm.data.dicom_codes import CODES, NEOPLASM, UNKNOWN, CodesError, code_of, read_codes
from app_cdm.data.dicom_map import make_parametric_map
from app_cdm.data.dicom_seg import Algorithm, Authorship, Segments, make_segmentation, person_name
from app_cdm.data.dicom_source import read_sources, to_planes
from app_cdm.data.volume import VolumeError, find_dicom_series, read_volume
from demo.cases import draw_spec, make_case
from demo.dicom import write_series

# ITK's binary modules warn while they load, and die if the warning is made an error.
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")

DATA = Path(os.environ.get("APP_CDM_DATA", "../shared/data")) / "dicom"
AUTHOR = Authorship("result 1", Algorithm("app_cdm student", "abc123"), "ann", "student abc123, tumor")
VALUES = {"edema": 1, "tumor": 2}
AXIAL, SAGITTAL, CORONAL = (1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), (1, 0, 0, 0, 0, -1)
OBLIQUE = (0.96, 0.28, 0.0, -0.224, 0.768, 0.6)
SHAPE = (20, 24, 7)

Change = Callable[[Dataset, int], None]


def unchanged(data: Dataset, index: int) -> None:
    """The slice as it is."""


def write_stack(folder: Path, orientation: tuple[float, ...] = AXIAL, change: Change = unchanged, num_slices: int = 7) -> list[Path]:
    """A complete, valid MR series of 20 columns and 24 rows; `change` edits each slice."""
    folder.mkdir()
    rows, columns = np.array(orientation[:3]), np.array(orientation[3:])
    uids = [f"1.2.826.0.1.3680043.8.498.{number}" for number in (11, 12, 13)]
    files = []
    for index in range(num_slices):
        data = Dataset()
        data.SpecificCharacterSet, data.ImageType = "ISO_IR 100", ["ORIGINAL", "PRIMARY", "M", "SE"]
        data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", f"1.2.826.0.1.3680043.8.498.20.{index + 1}"
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = uids
        data.PatientName, data.PatientID, data.PatientBirthDate, data.PatientSex = "Müller^Jürgen", "p1", "19600102", "M"
        data.StudyDate, data.StudyTime, data.StudyID, data.AccessionNumber = "20260102", "101112", "s1", "a1"
        data.ReferringPhysicianName, data.Modality, data.Manufacturer, data.SeriesNumber = "", "MR", "none", "3"
        data.PatientPosition, data.PositionReferenceIndicator, data.BodyPartExamined, data.Laterality = "HFS", "", "HEAD", ""
        data.InstanceNumber, data.Rows, data.Columns = str(index + 1), 24, 20
        data.PixelSpacing, data.SliceThickness = ["1.5", "1.25"], "3"
        data.ImageOrientationPatient = [f"{value:.9g}" for value in orientation]
        data.ImagePositionPatient = [f"{value:.9g}" for value in np.array([-12.5, 30.25, 7]) + 4 * index * np.cross(rows, columns)]
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
        data.PixelData = (np.arange(480, dtype="<u2") + index).tobytes()
        data.is_little_endian, data.is_implicit_VR = True, False
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = data.SOPClassUID, data.SOPInstanceUID
        change(data, index)
        files.append(folder / f"IM{index:03d}.dcm")
        pydicom.dcmwrite(files[-1], data, write_like_original=False)
    return files


def some_mask(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Both classes, without any symmetry, with empty slices, one voxel in a corner."""
    generator = np.random.default_rng(seed)
    mask = generator.choice(np.array([0, 0, 0, 1, 2], dtype=np.uint8), shape)
    mask[:, :, ::3] = 0
    mask[0, 0, -1] = 2
    return mask


def by_highdicom(seg: Dataset, sources: list[Dataset], path: Path) -> np.ndarray:
    """What a second reader finds on the source instances: `(S, rows, columns)`."""
    seg.save_as(path, write_like_original=False)
    read = highdicom.seg.segread(path)
    uids = [source.SOPInstanceUID for source in sources]
    return np.asarray(read.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True))


def by_stored_pixels(seg: Dataset, files: list[Path]) -> dict[str, np.ndarray]:
    """The mask of each source instance by frame, found by nothing but the frame's own reference and position."""
    found: dict[str, np.ndarray] = {}
    positions = {data.SOPInstanceUID: list(data.ImagePositionPatient) for data in map(pydicom.dcmread, files)}
    frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    for frame, groups in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        reference = groups.DerivationImageSequence[0].SourceImageSequence[0]
        uid, number = reference.ReferencedSOPInstanceUID, groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        np.testing.assert_allclose(groups.PlanePositionSequence[0].ImagePositionPatient, positions[uid], atol=1e-5)
        assert reference.SpatialLocationsPreserved == "YES"
        found[uid] = np.maximum(found.get(uid, 0), frame * number)
    return found


def errors_of(path: Path) -> set[str]:
    """Error lines of the validator dciodvfy."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not here: install Debian's package dicom3tools")
    told = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False).stderr
    assert "Segmentation" in told or "ParametricMap" in told, told
    return {line for line in told.splitlines() if line.startswith("Error")}


def test_planes_of_every_turn_and_flip(tmp_path: Path) -> None:
    files = write_stack(tmp_path / "s", OBLIQUE)
    sources, volume = read_sources(reversed(files)), read_volume(tmp_path / "s")
    mask = some_mask(SHAPE)
    expected = np.stack([mask[:, :, index].T for index in range(SHAPE[2])])
    assert np.array_equal(to_planes(mask, volume.affine, sources), expected)
    for order in [(0, 1, 2), (2, 0, 1), (1, 2, 0), (1, 0, 2), (2, 1, 0)]:
        for flipped in [(), (0,), (2,), (0, 1), (0, 1, 2)]:
            turned, affine = np.transpose(mask, order), volume.affine[:, [*order, 3]]
            for axis in flipped:
                corner = np.eye(4)
                corner[axis, axis], corner[axis, 3] = -1, turned.shape[axis] - 1
                turned, affine = np.flip(turned, axis), affine @ corner
            assert np.array_equal(to_planes(turned, affine, sources), expected), (order, flipped)


@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL, CORONAL, OBLIQUE, (-1, 0, 0, 0, 1, 0), (0, 1, 0, 1, 0, 0)])
@pytest.mark.parametrize("is_reversed", [False, True])
def test_round_trip_in_every_orientation(tmp_path: Path, orientation: tuple[float, ...], is_reversed: bool) -> None:
    def number(data: Dataset, index: int) -> None:
        if is_reversed:
            data.InstanceNumber = str(100 - index)

    files = write_stack(tmp_path / "s", orientation, number)
    volume, sources = read_volume(tmp_path / "s"), read_sources(files)
    mask = some_mask(volume.array.shape)
    seg = make_segmentation(mask, volume.affine, sources, Segments(VALUES), AUTHOR)
    planes = to_planes(mask, volume.affine, sources)
    assert np.array_equal(by_highdicom(seg, sources, tmp_path / "seg.dcm"), planes)
    stored = by_stored_pixels(pydicom.dcmread(tmp_path / "seg.dcm"), files)
    for source, plane in zip(sources, planes, strict=True):
        assert np.array_equal(stored.get(source.SOPInstanceUID, np.zeros_like(plane)), plane)
    assert errors_of(tmp_path / "seg.dcm") == set()


def test_what_the_object_says(tmp_path: Path) -> None:
    files = write_stack(tmp_path / "s")
    mask = some_mask(SHAPE)
    seg = make_segmentation(mask, read_volume(tmp_path / "s").affine, read_sources(files), Segments(VALUES), AUTHOR)
    seg.save_as(tmp_path / "seg.dcm", write_like_original=False)
    seg, source = pydicom.dcmread(tmp_path / "seg.dcm"), pydicom.dcmread(files[0])
    same = ("PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber")
    for keyword in (*same, "FrameOfReferenceUID", "BodyPartExamined"):
        assert seg[keyword].value == source[keyword].value, keyword
    assert str(seg.PatientName) == "Müller^Jürgen" and str(seg.ContentCreatorName) == "ann^"
    assert (seg.Modality, seg.SegmentationType, seg.SeriesDescription) == ("SEG", "BINARY", "student abc123, tumor")
    edema, tumor = seg.SegmentSequence
    assert [(item.SegmentNumber, item.SegmentLabel, item.SegmentAlgorithmType) for item in (edema, tumor)] == [
        (1, "edema", "AUTOMATIC"), (2, "tumor", "AUTOMATIC")]  # fmt: skip
    type_ = tumor.SegmentedPropertyTypeCodeSequence[0]
    assert (type_.CodeValue, type_.CodingSchemeDesignator, type_.CodeMeaning) == ("108369006", "SCT", "Neoplasm")
    assert tumor.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"
    identification = tumor.SegmentationAlgorithmIdentificationSequence[0]
    assert (identification.AlgorithmName, identification.AlgorithmVersion) == ("app_cdm student", "abc123")
    assert len(tumor.RecommendedDisplayCIELabValue) == 3 and tumor.RecommendedDisplayCIELabValue != edema.RecommendedDisplayCIELabValue
    assert tumor.TrackingID == "result 1 tumor" and tumor.TrackingUID != edema.TrackingUID
    referred = {item.ReferencedSOPInstanceUID for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID and len(referred) == 7
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert [float(value) for value in measures.PixelSpacing] == [1.5, 1.25] and float(measures.SpacingBetweenSlices) == 4


def test_equal_results_have_equal_uids_and_others_do_not(tmp_path: Path) -> None:
    files = write_stack(tmp_path / "s")
    mask, affine, sources = some_mask(SHAPE), read_volume(tmp_path / "s").affine, read_sources(files)
    one, same, other = (
        make_segmentation(mask, affine, sources, Segments(VALUES), Authorship(identity, AUTHOR.algorithm)) for identity in ("a", "a", "b")
    )

    def uids(seg: Dataset) -> list[str]:
        return [seg.SOPInstanceUID, seg.SeriesInstanceUID, *(item.TrackingUID for item in seg.SegmentSequence)]

    assert uids(one) == uids(same) and not set(uids(one)) & set(uids(other)) and len(set(uids(one))) == 4


def test_segments_are_alphabetical_whatever_the_values_are(tmp_path: Path) -> None:
    files = write_stack(tmp_path / "s")
    mask, sources = some_mask(SHAPE), read_sources(files)
    seg = make_segmentation(mask * 100, read_volume(tmp_path / "s").affine, sources, Segments({"tumor": 100, "edema": 200}), AUTHOR)
    assert [item.SegmentLabel for item in seg.SegmentSequence] == ["edema", "tumor"]
    planes = to_planes(np.array([0, 2, 1], dtype=np.uint8)[mask], read_volume(tmp_path / "s").affine, sources)
    assert np.array_equal(by_highdicom(seg, sources, tmp_path / "seg.dcm"), planes)


def test_a_class_that_was_not_found_is_named_and_has_no_frame(tmp_path: Path) -> None:
    files = write_stack(tmp_path / "s")
    mask, sources, affine = some_mask(SHAPE), read_sources(files), read_volume(tmp_path / "s").affine
    mask[mask == 1] = 0
    seg = make_segmentation(mask, affine, sources, Segments(VALUES), AUTHOR)
    assert np.array_equal(by_highdicom(seg, sources, tmp_path / "seg.dcm"), to_planes(mask, affine, sources))
    numbers = {frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber for frame in seg.PerFrameFunctionalGroupsSequence}
    assert numbers == {2} and [item.SegmentLabel for item in seg.SegmentSequence] == ["edema", "tumor"]
    assert errors_of(tmp_path / "seg.dcm") == set()
    with pytest.raises(VolumeError, match="empty"):
        make_segmentation(np.zeros_like(mask), affine, sources, Segments(VALUES), AUTHOR)


def test_a_single_slice_with_and_without_geometry(tmp_path: Path) -> None:
    files = write_stack(tmp_path / "one", num_slices=1)
    volume, sources = read_volume(files[0]), read_sources(files)
    mask = some_mask((20, 24, 1), 3) | np.uint8(1)
    seg = make_segmentation(mask % 3, volume.affine, sources, Segments(VALUES), AUTHOR)
    assert np.array_equal(by_highdicom(seg, sources, tmp_path / "seg.dcm"), to_planes(mask % 3, volume.affine, sources))
    assert errors_of(tmp_path / "seg.dcm") == set()

    def strip(data: Dataset, index: int) -> None:
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
        data.Modality, data.ConversionType = "OT", "WSD"
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID", "PixelSpacing", "SliceThickness"):
            delattr(data, keyword)

    files = write_stack(tmp_path / "bare", change=strip, num_slices=1)
    volume, sources = read_volume(files[0]), read_sources(files)
    seg = make_segmentation(mask % 3, volume.affine, sources, Segments(VALUES), AUTHOR)
    assert np.array_equal(by_highdicom(seg, sources, tmp_path / "bare.dcm"), np.transpose(mask % 3, (2, 1, 0)))


def test_a_series_with_a_gap_keeps_its_own_positions(tmp_path: Path) -> None:
    """ITK reads such a series all the same, with an affine that is right at one end only."""

    def gap(data: Dataset, index: int) -> None:
        data.ImagePositionPatient[2] += 20 if index >= 4 else 0

    files = write_stack(tmp_path / "s", change=gap)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "s")))
    reader.MetaDataDictionaryArrayUpdateOff()
    sitk.WriteImage(reader.Execute(), str(tmp_path / "image.nii.gz"))
    image, sources = read_volume(tmp_path / "image.nii.gz"), read_sources(files)
    mask = some_mask(SHAPE)
    seg = make_segmentation(mask, image.affine, sources, Segments(VALUES), AUTHOR)
    assert "SpacingBetweenSlices" not in seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    stored = by_stored_pixels(seg, files)
    for index, file in enumerate(files):
        plane = mask[:, :, index].T
        assert np.array_equal(stored.get(pydicom.dcmread(file).SOPInstanceUID, np.zeros_like(plane)), plane), index


@pytest.mark.parametrize(
    ("shape", "change", "words"),
    [
        ((20, 24, 6), np.eye(4), "6, 24, 20"),
        (SHAPE, np.diag([2, 2, 2, 1.0]), "not those"),
        (SHAPE, [0, 0, 9, 0], "beside"),
        (SHAPE, [3, 0, 0, 0], "beside"),
    ],
)
def test_masks_of_another_grid_are_refused(tmp_path: Path, shape: tuple[int, ...], change: object, words: str) -> None:
    files = write_stack(tmp_path / "s")
    affine = read_volume(tmp_path / "s").affine
    if isinstance(change, list):
        affine = affine.copy()
        affine[:, 3] += change
    else:
        affine = affine @ change
    with pytest.raises(VolumeError, match=words):
        make_segmentation(some_mask(shape), affine, read_sources(files), Segments(VALUES), AUTHOR)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientBirthDate", "unknown"),
        ("PatientSex", "X"),
        ("StudyDate", "2026"),
        ("StudyTime", "noon"),
        ("PatientName", None),
        ("StudyID", None),
        ("FrameOfReferenceUID", None),
        ("SliceThickness", None),
        ("LossyImageCompression", "01"),
        ("NumberOfFrames", "1"),
        ("PatientName", "=名^前"),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR", "ignore:Incorrect value for Specific Character Set", "ignore:.*failed to decode")
def test_headers_as_anonymisers_leave_them(tmp_path: Path, keyword: str, value: str | None) -> None:
    def spoil(data: Dataset, index: int) -> None:
        data.SpecificCharacterSet = "ISO_IR 192"
        if value is None:
            delattr(data, keyword)
        else:
            setattr(data, keyword, value)

    with pydicom.config.disable_value_validation():
        files = write_stack(tmp_path / "s", change=spoil)
        sources, volume = read_sources(files), read_volume(tmp_path / "s")
        mask = some_mask(SHAPE)
        seg = make_segmentation(mask, volume.affine, sources, Segments(VALUES), AUTHOR)
        assert np.array_equal(by_highdicom(seg, sources, tmp_path / "seg.dcm"), to_planes(mask, volume.affine, sources))
        if keyword == "PatientName" and value:
            assert str(pydicom.dcmread(tmp_path / "seg.dcm").PatientName) == value
    assert {line for line in errors_of(tmp_path / "seg.dcm") if "PatientName" not in line} == set()


def test_dcmqi_reads_the_same_voxels(tmp_path: Path) -> None:
    """The converter that 3D Slicer's extension uses."""
    files = write_stack(tmp_path / "s", OBLIQUE)
    volume, mask = read_volume(tmp_path / "s"), some_mask(SHAPE)
    make_segmentation(mask, volume.affine, read_sources(files), Segments(VALUES), AUTHOR).save_as(
        tmp_path / "seg.dcm", write_like_original=False
    )
    (tmp_path / "out").mkdir()
    tool = Path(sys.executable).parent / "segimage2itkimage"
    command = [str(tool), "--inputDICOM", str(tmp_path / "seg.dcm"), "--outputDirectory", str(tmp_path / "out"), "-t", "nifti"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    described = json.loads(next((tmp_path / "out").glob("*.json")).read_text())["segmentAttributes"]
    for (attributes,) in described:
        number, read = attributes["labelID"], read_volume(tmp_path / "out" / f"{attributes['labelID']}.nii.gz")
        assert attributes["SegmentLabel"] == {1: "edema", 2: "tumor"}[number]
        index = np.argwhere(read.array > 0)
        placed = np.rint((np.linalg.inv(volume.affine) @ read.affine @ np.c_[index, np.ones(len(index))].T)[:3].T).astype(int)
        expected = np.argwhere(mask == number)
        assert {*map(tuple, placed.tolist())} == {*map(tuple, expected.tolist())}


@pytest.mark.parametrize("left_out", [(), (0, 3)], ids=["whole", "too large"])
def test_maps_keep_their_floats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_out: tuple[int, ...]) -> None:
    if left_out:
        monkeypatch.setattr("app_cdm.data.dicom_map.WHOLE_BYTES", 4 * math.prod(SHAPE) - 1)
    files = write_stack(tmp_path / "s", OBLIQUE)
    volume, sources = read_volume(tmp_path / "s"), read_sources(files)
    values = np.random.default_rng(1).random(SHAPE, dtype=np.float32)
    values[:, :, [0, 3]] = 0
    made = make_parametric_map(values, volume.affine, sources, "tumor", AUTHOR)
    made.save_as(tmp_path / "map.dcm", write_like_original=False)
    read = pydicom.dcmread(tmp_path / "map.dcm")
    groups = [frame.DerivationImageSequence[0].SourceImageSequence[0] for frame in read.PerFrameFunctionalGroupsSequence]
    found = dict(zip([item.ReferencedSOPInstanceUID for item in groups], read.pixel_array, strict=True))
    planes = to_planes(values, volume.affine, sources)
    assert list(found) == [source.SOPInstanceUID for index, source in enumerate(sources) if index not in left_out], "a viewer counts frames"
    for source, plane in zip(sources, planes, strict=True):
        assert np.array_equal(found.get(source.SOPInstanceUID, np.zeros_like(plane)), plane)
    assert (read.Modality, read.FrameOfReferenceUID, str(read.PatientName)) == ("OT", sources[0].FrameOfReferenceUID, "Müller^Jürgen")
    assert errors_of(tmp_path / "map.dcm") == set()
    empty = make_parametric_map(np.zeros(SHAPE, dtype=np.float32), volume.affine, sources, "tumor", AUTHOR)
    assert int(empty.NumberOfFrames) == (1 if left_out else len(sources)) and not np.frombuffer(empty.FloatPixelData, dtype="<f4").any()


def test_memory_of_a_long_series_is_that_of_its_mask(tmp_path: Path) -> None:
    """200 slices of 256 x 256 40 of which the mask touches: no copy of float or index arrays of the whole."""

    def grow(data: Dataset, index: int) -> None:
        data.Rows = data.Columns = 256
        data.PixelData = bytes(2 * 256 * 256)

    sources = read_sources(write_stack(tmp_path / "s", change=grow, num_slices=200))
    affine = np.diag([-1.25, -1.5, 4, 1.0])
    affine[:3, 3] = [12.5, -30.25, 7]
    mask = np.zeros((256, 256, 200), dtype=np.uint8)
    mask[50:200, 50:200, 60:100] = 1
    tracemalloc.start()
    seg = make_segmentation(mask, affine, sources, Segments(VALUES), AUTHOR)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert int(seg.NumberOfFrames) == 40 and len(seg.PixelData) == 40 * 256 * 256 // 8
    assert peak < 4 * mask.nbytes, f"{peak / mask.nbytes:.1f} times the mask"


def test_the_demo_series(tmp_path: Path) -> None:
    case = make_case(draw_spec("demo", 5))
    files = write_series(case, tmp_path / "demo")
    check_series(files, tmp_path)


@pytest.mark.parametrize("name", ["chaos_ct_set3/DICOM", "lgg_derived"])
def test_real_series(tmp_path: Path, name: str) -> None:
    if not (DATA / name).is_dir():
        pytest.skip(f"no {DATA / name}: set APP_CDM_DATA")
    check_series(list(find_dicom_series(DATA / name)[0].files), tmp_path)


def check_series(files: list[Path], work: Path) -> None:
    """Round trip of a whole series, by both readers; the validator finds nothing that the source does not have."""
    for file in files:
        (work / "series").mkdir(exist_ok=True)
        shutil.copy(file, work / "series" / file.name)
    volume, sources = read_volume(work / "series"), read_sources(files)
    mask = (volume.array > np.percentile(volume.array, 97)).astype(np.uint8)
    seg = make_segmentation(mask, volume.affine, sources, Segments({"liver": 1}), AUTHOR)
    planes = to_planes(mask, volume.affine, sources)
    assert np.array_equal(by_highdicom(seg, sources, work / "seg.dcm"), planes)
    found = errors_of(work / "seg.dcm")
    assert (
        found - set(subprocess.run(["dciodvfy", str(files[0])], capture_output=True, text=True, check=False).stderr.splitlines()) == set()
    )


def test_codes_by_name_word_and_file(tmp_path: Path) -> None:
    assert code_of("tumor") == code_of("Brain_Tumor") == code_of("liver-tumour") == NEOPLASM
    assert code_of("LV").type.value == code_of("left ventricle").type.value == "87878005"
    assert code_of("rv").type.meaning == "Right ventricle" and code_of("liver").category.meaning == "Anatomical Structure"
    assert code_of("thing") == code_of("tumorous") == UNKNOWN
    file = tmp_path / "codes.json"
    assert read_codes(file) == {}
    file.write_text(json.dumps({"thing": {"category": ["49755003", "SCT", "Morph"], "type": ["1234", "99LOCAL", "Thing"]}}))
    assert code_of("thing", read_codes(file)).type.scheme_designator == "99LOCAL" and code_of("tumor", read_codes(file)) == NEOPLASM
    long = json.dumps({"a": {"category": ["1" * 17, "SCT", "x"], "type": ["1", "SCT", "x"]}})
    for wrong in ("{", "[]", '{"a": {}}', '{"a": {"category": ["1", "SCT"], "type": ["1", "SCT", "x"]}}', long):
        file.write_text(wrong)
        with pytest.raises(CodesError, match=r"codes\.json"):
            read_codes(file)


def test_every_code_can_be_written() -> None:
    for name, code in CODES.items():
        assert name == name.lower()
        for item in (code.category, code.type):
            assert re.fullmatch(r"\d{6,16}", item.value) and item.scheme_designator == "SCT" and 0 < len(item.meaning) <= 64


def test_person_names() -> None:
    assert (person_name("dr ann"), person_name(" "), person_name("a^b=c\\d")) == ("dr ann^", None, "a b c d^")
    assert len(person_name("x" * 100) or "") == 64

"""The MNI152 tissue maps that ship inside nilearn, and the head that they leave out, as signed distances.

The maps are skull-stripped, so skull, scalp and face are modelled around them (`demo.head` paints them).
MNI152 nonlinear 2009a, (c) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, McGill University (Fonov et al. 2011).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from demo.fields import Array, Mask, close, signed_distance

HEAD_SPACING_MM = 1.5
HEAD_ORIGIN_MM = np.array([-102.0, -138.0, -117.0])
HEAD_SHAPE = (137, 176, 152)
FACE_LEVEL_MM = -5.0
CACHE = Path(__file__).resolve().parent / "cache"


@dataclass(frozen=True)
class Template:
    """Brain tissue maps on their own grid, and distances on the head grid.

    Attributes:
        grey: probability of grey matter, (X, Y, Z) in [0, 1].
        white: probability of white matter, same grid.
        ventricle_proximity: near 1 beside the ventricles, falling to 0 within some mm, same grid.
        origin_mm: position of voxel (0, 0, 0) in RAS; voxels are 1 mm.
        brain_distance: mm to the closed brain surface on the head grid, negative inside.
        envelope_distance: mm to the smooth envelope of brain, skull base and face, negative inside.
    """

    grey: Array
    white: Array
    ventricle_proximity: Array
    origin_mm: Array
    brain_distance: Array
    envelope_distance: Array


@functools.cache
def load_template(cache: Path = CACHE) -> Template:
    """The maps of the installed nilearn package (no download, no import), and the distances derived from them.

    That takes some seconds, so it is kept in a file; another one is made when the maps or the code that derives are others.
    """
    package = importlib.util.find_spec("nilearn")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the MNI152 maps ship inside nilearn, which is not installed: run `make setup`")
    folder = Path(package.origin).parent / "datasets" / "data"
    files = [folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz" for name in ("gm", "wm")]
    code = [Path(__file__), Path(__file__).with_name("fields.py")]
    key = hashlib.sha256(b"".join(path.read_bytes() for path in (*files, *code))).hexdigest()
    kept = cache / f"template_{key[:16]}.npz"
    try:
        with kept.open("rb") as file:
            return Template(**np.load(file, allow_pickle=False))
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        template = _derive_template(*files)
    with contextlib.suppress(OSError):  # a folder that cannot be written costs time, no more
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as work:
            np.savez(Path(work) / kept.name, **vars(template))
            (Path(work) / kept.name).replace(kept)
    return template


def _derive_template(grey_file: Path, white_file: Path) -> Template:
    maps = {}
    for name, file in (("gm", grey_file), ("wm", white_file)):
        image = nib.Nifti1Image.from_filename(file)
        maps[name] = np.asarray(image.dataobj, dtype=np.float32) / 255.0
    origin = np.asarray(image.affine[:3, 3], dtype=np.float32)
    brain = _on_head_grid(maps["gm"] + maps["wm"], origin) > 0.3
    closed = ndimage.binary_fill_holes(close(brain, 6.0, HEAD_SPACING_MM))
    envelope = close(_with_face(np.asarray(closed, dtype=bool)), 24.0, HEAD_SPACING_MM)
    distance = signed_distance(envelope, HEAD_SPACING_MM)
    return Template(
        grey=maps["gm"],
        white=maps["wm"],
        ventricle_proximity=_ventricle_proximity(maps["gm"] + maps["wm"]),
        origin_mm=origin,
        brain_distance=signed_distance(np.asarray(closed, dtype=bool), HEAD_SPACING_MM),
        envelope_distance=np.asarray(ndimage.gaussian_filter(distance, 1.5), dtype=np.float32),
    )


def head_coordinates() -> tuple[Array, Array, Array]:
    """Broadcastable x, y, z in mm (RAS, MNI space) of the head grid."""
    axes = [np.float32(HEAD_ORIGIN_MM[i]) + HEAD_SPACING_MM * np.arange(n, dtype=np.float32) for i, n in enumerate(HEAD_SHAPE)]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    return x, y, z


def _ventricle_proximity(brain: Array) -> Array:
    """A soft halo of the fluid enclosed by the brain."""
    enclosed = ndimage.binary_erosion(ndimage.binary_fill_holes(close(brain > 0.5, 5.0, 1.0)), iterations=10)
    ventricles = enclosed & (brain < 0.5)
    return np.asarray(np.clip(3.0 * ndimage.gaussian_filter(ventricles.astype(np.float32), 2.5), 0.0, 1.0), dtype=np.float32)


def _on_head_grid(values: Array, origin_mm: Array) -> Array:
    """Resamples a 1 mm map onto the head grid."""
    offset = HEAD_ORIGIN_MM - origin_mm
    matrix = np.full(3, HEAD_SPACING_MM)
    return np.asarray(ndimage.affine_transform(values, matrix, offset, HEAD_SHAPE, order=1), dtype=np.float32)


def _with_face(brain: Mask) -> Mask:
    """Extends the outline at the level of the eyes downwards, tapering at the neck, and adds a nose."""
    x, y, z = head_coordinates()
    level = int(np.argmin(np.abs(z.ravel() - FACE_LEVEL_MM)))
    outline = signed_distance(close(brain[:, :, level], 30.0, HEAD_SPACING_MM), HEAD_SPACING_MM)[:, :, None]
    below = np.maximum(FACE_LEVEL_MM - z, 0.0)
    face = (outline < -0.08 * below) & (z < FACE_LEVEL_MM) & (y > -100.0 + 0.7 * np.maximum(-35.0 - z, 0.0))
    nose = (x / 8.0) ** 2 + ((y - 66.0) / 20.0) ** 2 + ((z + 62.0) / 26.0) ** 2 < 1.0
    return np.asarray(brain | face | nose, dtype=bool)

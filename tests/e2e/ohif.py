"""OHIF in a real browser, worked as a radiologist does: by its study list, panel and buttons."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Page, expect

from app_cdm.data.volume import Volume

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
WAIT_MS = 180_000

# Numbers as text: as a list they would take minutes to come out of the page.
PACKED = """const packed = values => {
  const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  let text = '';
  for (let start = 0; start < bytes.length; start += 32768) {
    text += String.fromCharCode.apply(null, bytes.subarray(start, start + 32768));
  }
  return { kind: values.constructor.name.replace('Array', '').toLowerCase(), data: btoa(text) };
};"""

# What cornerstone holds of the overlay, of the image under it, or of a parametric map.
READ_VOLUME = (
    f"(name) => {{ {PACKED}"
    + """
  const volumes = cornerstone.cache.getVolumes().filter(Boolean);
  const overlay = () => services.segmentationService.getLabelmapVolume('1');
  const volume = {
    overlay,
    map: () => volumes.find(one => one.volumeId.includes('pmap.')),
    image: () => volumes.find(one => one !== overlay() && one.imageIds[0].startsWith('wadors:')),
  }[name]();
  const values = volume.voxelManager.getCompleteScalarDataArray();
  return {
    ...packed(values),
    dimensions: Array.from(volume.dimensions),
    spacing: Array.from(volume.spacing),
    origin: Array.from(volume.origin),
    direction: Array.from(volume.direction),
  };
}"""
)

LOOK_AT = """async (point) => {
  for (const viewport of services.cornerstoneViewportService.getRenderingEngine().getViewports()) {
    if (viewport.jumpToWorld) { viewport.jumpToWorld(point); viewport.render(); continue; }
    const distances = viewport.getImageIds().map(imageId => {
      const plane = cornerstone.metaData.get('imagePlaneModule', imageId);
      const { imagePositionPatient: origin, rowCosines: row, columnCosines: column } = plane;
      const normal = [0, 1, 2].map(i => row[(i + 1) % 3] * column[(i + 2) % 3] - row[(i + 2) % 3] * column[(i + 1) % 3]);
      return Math.abs(normal.reduce((sum, value, i) => sum + value * (point[i] - origin[i]), 0));
    });
    await viewport.setImageIdIndex(distances.indexOf(Math.min(...distances)));
  }
}"""

ACTIVE_SERIES = """() => {
  const { viewports, activeViewportId } = services.viewportGridService.getState();
  const shown = viewports.get(activeViewportId).displaySetInstanceUIDs[0];
  return services.displaySetService.getDisplaySetByUID(shown).SeriesInstanceUID;
}"""

SEGMENTS = """() => Object.values(services.segmentationService.getSegmentation('1').segments)
  .map(segment => [segment.segmentIndex, segment.label])"""

HAS_STORED = """() => services.segmentationService.getSegmentations()
  .some(segmentation => segmentation.representationData.Labelmap?.imageIds?.length)"""

HAS_MAP = "() => cornerstone.cache.getVolumes().some(volume => volume?.volumeId.includes('pmap.') && volume.loadStatus.loaded)"

# A stored segmentation that the page has loaded, image by image: cornerstone keeps it as a stack beside the image that it belongs to.
READ_STORED = (
    f"() => {{ {PACKED}"
    + """ return services.segmentationService.getSegmentations().map(segmentation => ({
  label: segmentation.label,
  segments: Object.values(segmentation.segments).filter(Boolean).map(segment => [segment.segmentIndex, segment.label]),
  images: segmentation.representationData.Labelmap.imageIds.map(imageId => {
    const image = cornerstone.cache.getImage(imageId);
    const plane = cornerstone.metaData.get('imagePlaneModule', image.referencedImageId);
    return {
      ...packed(image.voxelManager.getScalarData()),
      shape: [plane.columns, plane.rows],
      spacing: [plane.columnPixelSpacing, plane.rowPixelSpacing],
      position: Array.from(plane.imagePositionPatient),
      axes: [Array.from(plane.rowCosines), Array.from(plane.columnCosines)],
    };
  }),
})); }"""
)


@dataclass(frozen=True)
class Shown:
    """A volume as the page holds it.

    Attributes:
        array: `(X, Y, Z)`.
        affine: voxel to RAS in mm.
    """

    array: np.ndarray
    affine: np.ndarray

    def on_grid(self, image: Volume) -> np.ndarray:
        """The same values in the voxel order of an image, by position in the patient; the grids must be the same voxels."""
        to_image = np.linalg.inv(image.affine) @ self.affine
        turn = np.rint(to_image[:3, :3])
        assert np.array_equal(np.abs(turn).sum(axis=0), np.ones(3)) and np.abs(to_image[:3, :3] - turn).max() < 0.001
        turned = self.array.transpose(np.abs(turn).argmax(axis=1))
        is_flipped = turn.sum(axis=1) < 0
        assert turned.shape == image.array.shape, "the page shows another number of voxels"
        first = np.where(is_flipped, np.array(turned.shape) - 1, 0)
        assert np.abs(to_image[:3, 3] - first).max() < 0.05, "the page shows the voxels elsewhere"
        return np.flip(turned, tuple(np.flatnonzero(is_flipped)))


class Ohif:
    """The viewer in a page.

    Args:
        page: a page of a browser.
        url: of the label server.
        screenshots: folder for what was seen.
    """

    def __init__(self, page: Page, url: str, screenshots: Path) -> None:
        self.page, self.url, self._screenshots = page, url, screenshots
        self.foreign: list[str] = []
        page.on("response", self._note)
        page.set_default_timeout(WAIT_MS)

    def list_studies(self) -> None:
        """Opens the study list."""
        self.page.goto(f"{self.url}/ohif/")
        expect(self.page.get_by_text("Study List", exact=True)).to_be_visible(timeout=WAIT_MS)

    def open_study(self, patient: str) -> None:
        """Opens a study of the list in the MONAI Label mode."""
        self.list_studies()
        self.page.get_by_text(patient, exact=True).first.click()
        self.page.get_by_role("button", name="MONAI Label").first.click()
        self.wait_for_pixels()

    def open_address(self, study: str) -> None:
        """Opens a study by its address, as a link from elsewhere does."""
        self.page.goto(f"{self.url}/ohif/monai-label?StudyInstanceUIDs={study}")
        self.wait_for_pixels()

    def active_series(self) -> str:
        """SeriesInstanceUID of what Run acts on."""
        return str(self.page.evaluate(ACTIVE_SERIES))

    def wait_for_pixels(self) -> None:
        """Until every slice of the study is in the viewports."""
        self.page.wait_for_function(
            "() => window.cornerstone && cornerstone.cache.getVolumes().some(v => v.loadStatus && v.loadStatus.loaded)", timeout=WAIT_MS
        )

    def connect(self) -> None:
        """Presses the panel's button beside the server's address, which nobody typed."""
        self.page.locator(".settingsTable .actionButton").click()
        expect(self.page.get_by_text("Auto-Segmentation")).to_be_visible(timeout=WAIT_MS)
        self.page.wait_for_function("() => services.segmentationService.getLabelmapVolume('1')", timeout=WAIT_MS)

    def models(self) -> list[str]:
        """Models that the panel offers."""
        return [text.strip() for text in self._automatic().locator("select option").all_inner_texts()]

    def run(self, model: str) -> None:
        """Chooses a model, presses Run and waits for the overlay."""
        tab = self._automatic()
        if not tab.locator("select").is_visible():
            tab.locator("label").click()
        tab.locator("select").select_option(model)
        with self.page.expect_console_message(lambda message: "updated the segmentation's scalar data" in message.text, timeout=WAIT_MS):
            tab.get_by_role("button", name="Run").click()

    def next_sample(self) -> dict[str, str]:
        """Presses Next Sample and reads what it shows: field -> value."""
        tab = self.page.locator(".tab").filter(has=self.page.get_by_text("Active Learning", exact=True))
        button = tab.get_by_role("button", name="Next Sample")
        if not button.is_visible():
            tab.locator("label").first.click()
        button.click()
        rows = self.page.locator(".nextSampleForm .optionsTable tbody tr")
        expect(rows.first).to_be_visible(timeout=WAIT_MS)
        return {row.locator("td").nth(0).inner_text(): row.locator("td").nth(1).inner_text() for row in rows.all()}

    def overlay(self) -> Shown:
        """The mask in the page."""
        return self._volume("overlay")

    def image(self) -> Shown:
        """The image in the page."""
        return self._volume("image")

    def segments(self) -> dict[str, int]:
        """Name -> value of the overlay's segments."""
        return {label: index for index, label in self.page.evaluate(SEGMENTS)}

    def open_stored(self, study: str) -> None:
        """Opens a study in the Segmentation mode and loads its DICOM segmentation, as its user does: double click, then Yes."""
        self.page.goto(f"{self.url}/ohif/segmentation?StudyInstanceUIDs={study}")
        self.page.locator("[data-cy='study-browser-thumbnail-no-image']").first.dblclick(timeout=WAIT_MS)
        self.page.locator("[data-cy='yes-hydrate-btn']").click(timeout=WAIT_MS)
        self.page.wait_for_function(HAS_STORED, timeout=WAIT_MS)

    def stored(self) -> tuple[Shown, dict[str, int]]:
        """The segmentation that `open_stored` has loaded, and name -> value of its segments."""
        (read,) = self.page.evaluate(READ_STORED)
        slices = sorted(read["images"], key=lambda image: _along_normal(image))
        first, last = slices[0], slices[-1]
        assert all(image["axes"] == first["axes"] and image["shape"] == first["shape"] for image in slices)
        affine = np.eye(4)
        affine[:3, :2] = np.array(first["axes"]).T * np.array(first["spacing"])
        affine[:3, 2] = (np.array(last["position"]) - np.array(first["position"])) / (len(slices) - 1)
        affine[:3, 3] = first["position"]
        planes = [_unpacked(image).reshape(image["shape"], order="F") for image in slices]
        return Shown(np.stack(planes, axis=2), LPS_TO_RAS @ affine), {label: index for index, label in read["segments"]}

    def open_map(self, study: str) -> Shown:
        """Opens a study in the Basic Viewer, lays its one Parametric Map over the image, and reads its values there."""
        self.page.goto(f"{self.url}/ohif/viewer?StudyInstanceUIDs={study}")
        thumbnail = self.page.locator("[data-cy='study-browser-thumbnail-no-image']")
        thumbnail.filter(has_text="PMAP").dblclick(timeout=WAIT_MS)
        self.page.wait_for_function(HAS_MAP, timeout=WAIT_MS)
        self.page.wait_for_timeout(2000)  # until it is drawn
        shown = self._volume("map")
        return Shown(shown.array / 100, shown.affine)

    def look_at(self, position_mm: np.ndarray) -> None:
        """Scrolls every viewport to a position in the patient (RAS)."""
        self.page.evaluate(LOOK_AT, [float(value) for value in LPS_TO_RAS[:3, :3] @ position_mm])
        self.page.wait_for_timeout(500)

    def screenshot(self, name: str) -> Path:
        """Keeps what is on the screen."""
        self._screenshots.mkdir(parents=True, exist_ok=True)
        file = self._screenshots / f"{name}.png"
        self.page.screenshot(path=file)
        return file

    def _automatic(self) -> Any:
        return self.page.locator(".tab").filter(has=self.page.get_by_text("Auto-Segmentation", exact=True))

    def _note(self, response: Any) -> None:
        if not response.url.startswith((self.url, "blob:", "data:")):
            self.foreign.append(response.url)

    def _volume(self, name: str) -> Shown:
        read = self.page.evaluate(READ_VOLUME, name)
        affine = np.eye(4)
        affine[:3, :3] = np.array(read["direction"]).reshape(3, 3).T * np.array(read["spacing"])
        affine[:3, 3] = read["origin"]
        return Shown(_unpacked(read).reshape(read["dimensions"], order="F"), LPS_TO_RAS @ affine)


def _along_normal(image: dict[str, Any]) -> float:
    row, column = np.array(image["axes"])
    return float(np.cross(row, column) @ np.array(image["position"]))


def _unpacked(values: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(values["data"]), dtype=np.dtype(values["kind"]))

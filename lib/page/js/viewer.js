// NiiVue, shown one voxel plane of the file at a time.

import { Niivue, NVImage, SLICE_TYPE } from "../vendor/niivue.js";

/** Slice types by the axis of NiiVue's reoriented (RAS) grid that they are perpendicular to. */
const PLANES = [SLICE_TYPE.SAGITTAL, SLICE_TYPE.CORONAL, SLICE_TYPE.AXIAL];
const ENDS = ["LR", "PA", "IS"];
const MAX_ZOOM = 12;
/** Of a map, what is less than this is not drawn over the image. */
const MIN_SHOWN = 0.3;

export class Viewer {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    this.niivue = null;
    this.slice = 0;
    this.numSlices = 0;
    /** Axis of the reoriented grid that slices lie along, and whether the file counts against it. */
    this.axis = 2;
    this.isReversed = false;
    this.initialWindow = [0, 1];
    this.zoom = 1;
    /** Where the middle of the view lies, from the middle of the image, in mm along the reoriented axes. */
    this.offset = [0, 0, 0];
    this.drawing = 0;
    this.overlayTurn = 0; // a mask that takes long to load must not appear after one that was asked for later
  }

  /** Starts WebGL; throws where there is none. */
  async start() {
    this.niivue = new Niivue({
      backColor: [0, 0, 0, 1],
      crosshairWidth: 0,
      dragAndDropEnabled: false,
      fontColor: [0.88, 0.91, 0.93, 1],
      fontMinPx: 15,
      interactive: false,
      atlasOutline: 1,
      isColorbar: false,
      isOrientationTextVisible: true,
      isRadiologicalConvention: true,
      isSliceMM: false,
      loadingText: "",
      logLevel: "error",
      sagittalNoseLeft: true,
      show3Dcrosshair: false,
    });
    await this.niivue.attachToCanvas(this.canvas);
  }

  /**
   * Shows an image.
   * @param {ArrayBuffer} bytes a NIfTI file
   * @param {string} name
   * @param {number} slicingAxis the file's voxel axis that slices lie along
   * @param {number} numSlices
   * @param {AbortSignal} signal once aborted, nothing is shown: NiiVue cannot be stopped while it unpacks
   * @throws {Error} the file cannot be read, or is another than the server said
   */
  async show(bytes, name, slicingAxis, numSlices, signal) {
    const image = await NVImage.loadFromUrl({ url: bytes, name: fileName(bytes, name), colormap: "gray", percentileFrac: 0.005 });
    if (signal.aborted) return;
    const along = image.permRAS.findIndex((axis) => Math.abs(axis) === slicingAxis + 1);
    const found = Math.max(image.hdr.dims[slicingAxis + 1], 1);
    if (found !== numSlices || along < 0) throw new Error(`the file has ${found} slices, the server said ${numSlices}`);
    image.calMinMax(Number.POSITIVE_INFINITY, false); // of the whole image, not of its middle alone
    this.clear();
    this.axis = along;
    this.isReversed = image.permRAS[along] < 0;
    this.numSlices = numSlices;
    this.niivue.addVolume(image);
    this.niivue.setSliceType(PLANES[along]);
    this.initialWindow = [image.cal_min, image.cal_max];
    this.resetView();
  }

  /** Takes every image away. */
  clear() {
    while (this.niivue.volumes.length) this.niivue.removeVolume(this.niivue.volumes.at(-1));
    this.numSlices = 0;
  }

  /**
   * Lays a map over the image, on the same voxel grid, in place of the overlay before.
   * @param {ArrayBuffer | null} bytes a NIfTI file with values from 0 to 1, or null for no overlay
   */
  async setMap(bytes) {
    await this.#setOverlay(bytes, "warm", 0.5, (map) => {
      [map.cal_min, map.cal_max] = [MIN_SHOWN, 1];
    });
  }

  /**
   * Lays a mask over the image, each class in its own colour.
   * @param {ArrayBuffer} bytes a NIfTI file
   * @param {{number: number, rgb: number[]}[]} looks by label number
   */
  async setMask(bytes, looks) {
    const table = [{ number: 0, rgb: [0, 0, 0] }, ...looks];
    await this.#setOverlay(bytes, "gray", 0.35, (mask) => {
      const [R, G, B] = [0, 1, 2].map((channel) => table.map(({ rgb }) => rgb[channel]));
      mask.setColormapLabel({ R, G, B, A: table.map((_, index) => (index ? 255 : 0)), I: table.map(({ number }) => number) });
    });
  }

  async #setOverlay(bytes, colormap, opacity, prepare) {
    const image = this.niivue.volumes[0];
    const turn = ++this.overlayTurn;
    const overlay = bytes && (await NVImage.loadFromUrl({ url: bytes, name: fileName(bytes, "overlay"), colormap, opacity }));
    if (this.niivue.volumes[0] !== image || this.overlayTurn !== turn) return; // another case is shown by now, or another overlay is wanted
    while (this.niivue.volumes.length > 1) this.niivue.removeVolume(this.niivue.volumes.at(-1));
    if (!overlay || !image) return this.draw();
    prepare(overlay);
    this.niivue.addVolume(overlay);
    this.draw();
  }

  /** Shows a slice, by its number in the file's voxel order. @param {number} slice */
  goTo(slice) {
    this.slice = Math.min(Math.max(slice, 0), Math.max(this.numSlices - 1, 0));
    const along = this.isReversed ? this.numSlices - 1 - this.slice : this.slice;
    const position = [0.5, 0.5, 0.5];
    position[this.axis] = (along + 0.5) / this.numSlices; // the middle of the voxel plane
    this.niivue.scene.crosshairPos = position;
    this.draw();
  }

  /** Directions in which slices are counted: of the first and of the last one. */
  get ends() {
    const [low, high] = ENDS[this.axis];
    return this.isReversed ? [high, low] : [low, high];
  }

  /** Window and level, in the image's intensities. */
  get window() {
    const image = this.niivue.volumes[0];
    return image ? { level: (image.cal_min + image.cal_max) / 2, width: image.cal_max - image.cal_min } : { level: 0, width: 1 };
  }

  /** Makes the window wider by a factor, and moves its level by a share of its width. */
  changeWindow(factor, shift) {
    const image = this.niivue.volumes[0];
    if (!image) return;
    const { level, width } = this.window;
    const [middle, half] = [level + shift * width, (width * factor) / 2];
    if (!(half > 0) || !Number.isFinite(half + middle)) return;
    [image.cal_min, image.cal_max] = [middle - half, middle + half];
    this.niivue.updateGLVolume();
  }

  /** Zooms by a factor, about the middle of what is seen. */
  changeZoom(factor) {
    this.zoom = Math.min(Math.max(this.zoom * factor, 1), MAX_ZOOM);
    if (this.zoom === 1) this.offset = [0, 0, 0]; // the whole picture is in the middle
    this.#place();
  }

  /** Looks further to the right and further up, by shares of what is seen. */
  look(right, up) {
    const image = this.niivue.volumes[0];
    if (!image) return;
    const [across, upwards] = [0, 1, 2].filter((axis) => axis !== this.axis);
    const seen = (axis) => (image.dimsRAS[axis + 1] * image.pixDimsRAS[axis + 1]) / this.zoom;
    this.offset[across] -= right * seen(across); // the patient's left, and the back of the head, are on the right
    this.offset[upwards] += up * seen(upwards);
    this.#place();
  }

  /** Window, zoom and position as the image was first shown. */
  resetView() {
    const image = this.niivue.volumes[0];
    if (!image) return;
    [image.cal_min, image.cal_max] = this.initialWindow;
    [this.zoom, this.offset] = [1, [0, 0, 0]];
    this.#place();
    this.niivue.updateGLVolume();
  }

  /** NiiVue moves the bounds of its view, then divides them by the zoom: their middle is to be where we look. */
  #place() {
    const image = this.niivue.volumes[0];
    if (!image) return;
    const pan = [0, 1, 2].map((axis) => {
      const middle = (image.extentsMinOrtho[axis] + image.extentsMaxOrtho[axis]) / 2;
      return middle - this.zoom * (middle + this.offset[axis]);
    });
    this.niivue.setPan2Dxyzmm([...pan, this.zoom]);
  }

  /** Draws at the screen's next opportunity, once for however many changes. */
  draw() {
    if (this.drawing) return;
    this.drawing = requestAnimationFrame(() => {
      this.drawing = 0;
      this.niivue.drawScene();
    });
  }
}

/** NiiVue tells formats by name; what is compressed is seen in the first two bytes. */
function fileName(bytes, name) {
  const [one, two] = new Uint8Array(bytes, 0, 2);
  return `${name.replace(/[^\w-]/g, "_")}.nii${one === 0x1f && two === 0x8b ? ".gz" : ""}`;
}

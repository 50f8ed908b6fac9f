// A volume in three planes and in 3D, by NiiVue, which is loaded when somebody asks for it. Image and mask come as NIfTI
// from the server. A place of the table moves the crosshair there.

// Voxels towards the right of the body, its front and its head; its right is on the left of what is shown.
const STEPS = {
  ArrowLeft: [1, 0, 0],
  ArrowRight: [-1, 0, 0],
  ArrowUp: [0, 0, 1],
  ArrowDown: [0, 0, -1],
  PageUp: [0, 1, 0],
  PageDown: [0, -1, 0],
};
const LETTERS = { isOrientationTextVisible: true, showAllOrientationMarkers: true };

export function watchSpace() {
  const root = document.querySelector("[data-space]");
  if (!root) return;
  root.hidden = false;
  const button = root.querySelector("[data-open]");
  button?.addEventListener("click", async () => {
    button.disabled = true;
    const state = root.querySelector("[data-state]");
    state.textContent = "Loading…";
    try {
      await open(root);
      state.textContent = "";
      button.hidden = true;
    } catch (error) {
      root.querySelector("[data-room]").hidden = true;
      state.textContent = `3D cannot be shown: ${error.message}`;
      button.disabled = false;
    }
  });
}

async function open(root) {
  if (!document.createElement("canvas").getContext("webgl2")) throw new Error("this browser offers no WebGL 2. The planes above show the same.");
  const [, image, mask, ends] = await Promise.all([
    import(root.dataset.bundle),
    received(root.dataset.image),
    root.dataset.mask ? received(root.dataset.mask) : null,
    directions(root.dataset.axes),
  ]);
  root.querySelector("[data-room]").hidden = false;
  const viewer = new globalThis.niivue.Niivue({ // its bundle is a script and no module: it leaves one name behind
    ...(ends ? LETTERS : { isOrientationTextVisible: false }),
    isRadiologicalConvention: true, // the right of the body is on the left, as planes of scanners are read
    multiplanarShowRender: 1,
    multiplanarLayout: 2, // two rows of two, in which planes are largest
    multiplanarPadPixels: 6,
    crosshairWidth: 0.4,
    crosshairWidthUnit: "percent",
    crosshairGap: 4,
    isNearestInterpolation: true, // a gap of one voxel is what people look for
    fontColor: [1, 1, 1, 1],
    fontMinPx: 15,
    sliceType: 3,
    backColor: [0, 0, 0, 1],
    crosshairColor: [1, 0.85, 0, 1],
    dragAndDropEnabled: false,
    viewModeHotKey: "", // the select says which view it is
    isColorbar: false,
    loadingText: "",
    logLevel: "error",
  });
  await viewer.attachToCanvas(root.querySelector("canvas"));
  await viewer.loadFromArrayBuffer(image, "image.nii.gz");
  const [shown] = viewer.volumes;
  if (!(shown.cal_max > shown.cal_min)) { // an even image, which would have no window
    shown.cal_min -= 0.5;
    shown.cal_max += 0.5;
    viewer.updateGLVolume();
  }
  if (mask) {
    await viewer.loadFromArrayBuffer(mask, "mask.nii.gz");
    viewer.volumes[1].setColormapLabel(colours(JSON.parse(root.dataset.classes)));
    viewer.setOpacity(1, 0.6);
    viewer.updateGLVolume();
  }
  watchTools(root, viewer);
  watchPlaces(root, viewer);
}

async function received(address) {
  const answer = await fetch(address, { headers: { Accept: "application/gzip, application/json" } });
  if (!answer.ok) throw new Error(await reason(answer));
  return answer.arrayBuffer();
}

async function reason(answer) {
  try {
    return (await answer.json()).detail;
  } catch {
    return `the server answered ${answer.status}.`;
  }
}

async function directions(address) {
  try {
    return (await (await fetch(address)).json()).ends;
  } catch {
    return null; // without letters the picture is the same
  }
}

function colours(classes) {
  const all = [[0, 0, 0], ...classes.map((each) => each.colour)];
  return {
    R: all.map((colour) => colour[0]),
    G: all.map((colour) => colour[1]),
    B: all.map((colour) => colour[2]),
    A: all.map((_, position) => (position ? 255 : 0)),
    I: all.map((_, position) => position),
    labels: ["", ...classes.map((each) => each.name)],
  };
}

function watchTools(root, viewer) {
  const [level, width, opacity, views] = ["room-level", "room-window", "room-opacity", "views"].map((name) => root.querySelector(`[data-${name}]`));
  const [image] = viewer.volumes;
  const tell = () => {
    level.value = Number(((image.cal_min + image.cal_max) / 2).toPrecision(4));
    width.value = Number((image.cal_max - image.cal_min).toPrecision(4));
  };
  const apply = () => {
    const [middle, wide] = [Number(level.value), Number(width.value)];
    if (level.value === "" || !(wide > 0)) return;
    image.cal_min = middle - wide / 2;
    image.cal_max = middle + wide / 2;
    viewer.updateGLVolume();
  };
  for (const input of [level, width]) input.addEventListener("input", apply);
  viewer.onIntensityChange = tell; // dragging with the right button chooses it from the image
  opacity?.addEventListener("input", () => viewer.setOpacity(1, opacity.value / 100));
  views.addEventListener("change", () => viewer.setSliceType(Number(views.value)));
  tell();
}

// Crosshair and places ----------------------------------------------------------------------------------------------

function watchPlaces(root, viewer) {
  const line = root.querySelector("[data-room-at]");
  const affine = viewer.volumes[0].hdr.affine;
  const tell = ({ mm, values }) => {
    const at = solved(affine, mm).map(Math.round).reverse();
    const value = values?.[0]?.value;
    line.textContent = `At plane, row, column ${at.join(", ")}${Number.isFinite(value) ? `: value ${Number(value.toPrecision(5))}` : ""}`;
  };
  viewer.onLocationChange = tell;
  const go = (at) => {
    const [plane, row, column] = at;
    const mm = [0, 1, 2].map((axis) => affine[axis][0] * column + affine[axis][1] * row + affine[axis][2] * plane + affine[axis][3]);
    viewer.scene.crosshairPos = viewer.mm2frac(mm, 0, true);
    viewer.drawScene();
    viewer.createOnLocationChange();
  };
  document.querySelector("[data-place-list] tbody")?.addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (!row) return;
    go(row.dataset.at.split(",").map(Number));
    root.querySelector(".room").scrollIntoView({ block: "nearest" });
  });
  root.querySelector("canvas").addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    if (!step) return;
    event.preventDefault();
    viewer.moveCrosshairInVox(...step);
    viewer.createOnLocationChange();
  });
  viewer.createOnLocationChange();
}

// (column, row, plane) at a place in millimetres, by Cramer's rule.
function solved(affine, mm) {
  const axes = [0, 1, 2].map((axis) => [0, 1, 2].map((row) => affine[row][axis]));
  const target = [0, 1, 2].map((row) => mm[row] - affine[row][3]);
  const whole = determinant(axes);
  return axes.map((_, axis) => determinant(axes.map((column, other) => (other === axis ? target : column))) / whole);
}

function determinant([a, b, c]) {
  return a[0] * (b[1] * c[2] - b[2] * c[1]) - b[0] * (a[1] * c[2] - a[2] * c[1]) + c[0] * (a[1] * b[2] - a[2] * b[1]);
}

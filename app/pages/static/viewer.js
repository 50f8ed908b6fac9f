// Zoom, pan, pinch, planes, looks and keys for the layer viewer. Layers themselves are switched by checkboxes and CSS.
// Viewers of one group show the same place at the same size and the same layers. What is shown is kept in the address,
// after #, so that a link shows the same.

import { watchPlaces } from "./places.js";
import { watchPair } from "./pair.js";
import { watchSlices } from "./slices.js";

const MOST = 32;

export function watchViewers() {
  const groups = new Map();
  for (const root of document.querySelectorAll("[data-viewer]")) {
    const name = root.dataset.viewer || root;
    if (!groups.has(name)) groups.set(name, { scale: 1, x: 0, y: 0, views: [], shown: [] });
    watch(root, groups.get(name));
  }
  for (const group of groups.values()) {
    restore(group);
    if (group.views.length === 2) watchPair(group);
  }
  const [first] = groups.values();
  if (groups.size !== 1) return;
  // With one viewer or pair on the page, its keys work wherever nothing else wants them.
  document.addEventListener("keydown", (event) => {
    const busy = event.target.closest("input, select, textarea, button, a, summary, [tabindex='0']");
    if (!busy) key(event, first.views[0].root, first, first.views[0].frame);
  });
}

function watch(root, view) {
  const frame = root.querySelector("[data-frame]");
  const stack = root.querySelector("[data-stack]");
  const [rows, columns] = root.dataset.grid.split(",").map(Number);
  const own = { root, frame, stack, rows, columns };
  view.views.push(own);
  for (const tools of root.querySelectorAll("[data-tools]")) tools.hidden = false;
  watchLooks(root, view);
  if (root.dataset.slices) watchSlices(own, view);
  watchPlaces(own, view, { fly: (row, column) => fly(view, own, row, column), show: () => show(view, view.scale, view.x, view.y) });

  for (const box of root.querySelectorAll("input[data-layer]")) {
    box.addEventListener("change", () => {
      for (const other of view.views) {
        const same = other.root.querySelector(`input[data-layer="${box.dataset.layer}"]`);
        if (same) same.checked = box.checked;
      }
      remember(view);
    });
  }
  for (const button of root.querySelectorAll("[data-zoom]")) {
    button.addEventListener("click", () => {
      if (button.dataset.zoom === "fit") show(view, 1, 0, 0);
      else zoom(view, frame, button.dataset.zoom === "in" ? 1.5 : 1 / 1.5);
    });
  }
  frame.addEventListener("keydown", (event) => { if (event.target === frame) key(event, root, view, frame); });
  frame.addEventListener("wheel", (event) => {
    if (own.wheel && !event.ctrlKey) return own.wheel(event); // a volume: the wheel goes through its planes
    // Without Ctrl the wheel scrolls the page, unless one is zoomed in already.
    if (!event.ctrlKey && view.scale === 1) return;
    event.preventDefault();
    zoom(view, frame, event.deltaY < 0 ? 1.2 : 1 / 1.2, event);
  }, { passive: false });
  stack.addEventListener("dblclick", (event) => zoom(view, frame, view.scale > 3 ? 1 / view.scale : 2, event));
  touch(own, view);
  addEventListener("resize", () => show(view, view.scale, view.x, view.y));
}

function watchLooks(root, view) {
  const all = (selector) => view.views.flatMap((each) => [...each.root.querySelectorAll(selector)]);
  const opacity = root.querySelector("[data-opacity]");
  opacity?.addEventListener("input", () => {
    for (const frame of all("[data-frame]")) frame.style.setProperty("--layer-opacity", opacity.value / 100);
    for (const other of all("[data-opacity]")) other.value = opacity.value;
  });
  for (const name of ["style", "colour"]) {
    const choice = root.querySelector(`[data-${name}]`);
    choice?.addEventListener("change", () => {
      for (const layer of all("img.mask, img.edited, img.reference")) setQuery(layer, { [name]: choice.value });
      for (const other of all(`[data-${name}]`)) other.value = choice.value;
    });
  }
  const [level, contrast] = [root.querySelector("[data-level]"), root.querySelector("[data-window]")];
  for (const input of [level, contrast]) {
    input.addEventListener("input", () => {
      for (const picture of all("img.picture")) picture.style.filter = `brightness(${level.value}%) contrast(${contrast.value}%)`;
    });
  }
}

// Ask for the same picture in another way; a field without a value is left out.
export function setQuery(picture, fields) {
  const address = new URL(picture.getAttribute("src"), location.href);
  for (const [name, value] of Object.entries(fields)) {
    if (value === "") address.searchParams.delete(name);
    else address.searchParams.set(name, value);
  }
  picture.src = address.pathname + address.search;
}

function key(event, root, view, frame) {
  const step = 60;
  const moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  const own = view.views.find((each) => each.root === root);
  if (event.key === "+" || event.key === "=") zoom(view, frame, 1.5);
  else if (event.key === "-") zoom(view, frame, 1 / 1.5);
  else if (event.key === "0") show(view, 1, 0, 0);
  else if (own.step && (event.key === "PageDown" || event.key === "PageUp")) own.step(event.key === "PageDown" ? 1 : -1);
  else if (moves[event.key] && view.scale > 1) show(view, view.scale, view.x + moves[event.key][0], view.y + moves[event.key][1]);
  else if (/^[1-9]$/.test(event.key)) root.querySelectorAll("input[data-layer]")[event.key - 1]?.click();
  else return;
  event.preventDefault();
}

function zoom(view, frame, factor, at) {
  const box = frame.getBoundingClientRect();
  const x = at ? at.clientX - box.left : box.width / 2;
  const y = at ? at.clientY - box.top : box.height / 2;
  const scale = Math.min(MOST, Math.max(1, view.scale * factor));
  const ratio = scale / view.scale;
  show(view, scale, x - (x - view.x) * ratio, y - (y - view.y) * ratio);
}

// Bring a pixel to the middle, close enough to see what is around it.
function fly(view, own, row, column) {
  const scale = Math.min(MOST, Math.max(view.scale, own.columns / 60, 3));
  const x = ((column + 0.5) / own.columns) * own.stack.clientWidth * scale;
  const y = ((row + 0.5) / own.rows) * own.stack.clientHeight * scale;
  show(view, scale, own.frame.clientWidth / 2 - x, own.frame.clientHeight / 2 - y);
}

function show(view, scale, x, y) {
  const { frame } = view.views[0];
  view.scale = scale;
  view.x = Math.min(0, Math.max(frame.clientWidth * (1 - scale), x));
  view.y = Math.min(0, Math.max(frame.clientHeight * (1 - scale), y));
  for (const own of view.views) {
    own.stack.style.transform = scale === 1 ? "" : `translate(${view.x}px, ${view.y}px) scale(${scale})`;
    own.frame.classList.toggle("zoomed", scale > 1);
    own.frame.dataset.scale = scale.toFixed(2);
  }
  for (const redraw of view.shown) redraw();
  remember(view);
}

function remember(view) {
  clearTimeout(view.timer);
  view.timer = setTimeout(() => {
    const { root, frame } = view.views[0];
    const on = [...root.querySelectorAll("input[data-layer]:checked")].map((box) => box.dataset.layer).join(".");
    const middle = [(frame.clientWidth / 2 - view.x) / frame.clientWidth, (frame.clientHeight / 2 - view.y) / frame.clientHeight];
    const place = view.scale === 1 ? "" : `&at=${[view.scale, ...middle.map((part) => part / view.scale)].map((part) => part.toFixed(4)).join(",")}`;
    history.replaceState(history.state, "", `#on=${on}${place}`);
  }, 150);
}

function restore(view) {
  const said = new URLSearchParams(location.hash.slice(1));
  if (said.has("on")) {
    const on = said.get("on").split(".");
    for (const { root } of view.views) {
      for (const box of root.querySelectorAll("input[data-layer]")) box.checked = on.includes(box.dataset.layer);
    }
  }
  const [scale, x, y] = (said.get("at") ?? "").split(",").map(Number);
  if (!(scale >= 1 && scale <= MOST && x >= 0 && y >= 0)) return;
  const { frame } = view.views[0];
  const place = () => show(view, scale, frame.clientWidth * (0.5 - x * scale), frame.clientHeight * (0.5 - y * scale));
  place();
  view.views[0].root.querySelector(".picture").addEventListener("load", place, { once: true });
}

// One finger or the mouse drags, two fingers pinch; one finger scrolls the page while nothing is zoomed in.
function touch(own, view) {
  const { frame } = own;
  const fingers = new Map();
  let from = null;
  const middle = () => {
    const [a, b] = [...fingers.values()];
    return { clientX: (a.x + b.x) / 2, clientY: (a.y + b.y) / 2, apart: Math.hypot(a.x - b.x, a.y - b.y) };
  };
  frame.addEventListener("pointerdown", (event) => {
    if (event.button || event.target.closest("button")) return;
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    own.moved = false;
    if (fingers.size === 2) from = middle();
    if (view.scale > 1 || fingers.size === 2) frame.setPointerCapture(event.pointerId);
  });
  frame.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (Math.hypot(event.clientX - before.x, event.clientY - before.y) > 1) own.moved = true;
    if (fingers.size === 2) {
      const now = middle();
      view.x += now.clientX - from.clientX;
      view.y += now.clientY - from.clientY;
      zoom(view, frame, now.apart / (from.apart || 1), now);
      from = now;
    } else if (view.scale > 1) show(view, view.scale, view.x + event.clientX - before.x, view.y + event.clientY - before.y);
  });
  for (const end of ["pointerup", "pointercancel"]) frame.addEventListener(end, (event) => fingers.delete(event.pointerId));
  frame.addEventListener("touchmove", (event) => { if (event.touches.length > 1) event.preventDefault(); }, { passive: false });
  frame.addEventListener("dragstart", (event) => event.preventDefault());
}

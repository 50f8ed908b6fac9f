// Opacity, zoom, pan and keys for the layer viewer. Layers themselves are switched by checkboxes and CSS.
// Viewers of one group show the same place at the same size.

const MOST = 32;

export function watchViewers() {
  const groups = new Map();
  for (const root of document.querySelectorAll("[data-viewer]")) {
    const name = root.dataset.viewer || root;
    if (!groups.has(name)) groups.set(name, { scale: 1, x: 0, y: 0, views: [] });
    watch(root, groups.get(name));
  }
}

function watch(root, view) {
  const frame = root.querySelector("[data-frame]");
  const stack = root.querySelector("[data-stack]");
  view.views.push({ frame, stack });
  for (const tools of root.querySelectorAll("[data-tools]")) tools.hidden = false;

  const opacity = root.querySelector("[data-opacity]");
  opacity.addEventListener("input", () => {
    for (const layer of root.querySelectorAll(".layer:not(.skeleton, .located)")) layer.style.opacity = opacity.value / 100;
  });
  if (!root.querySelector(".layer:not(.skeleton, .located)")) opacity.closest("label").hidden = true;

  for (const button of root.querySelectorAll("[data-zoom]")) {
    button.addEventListener("click", () => {
      if (button.dataset.zoom === "fit") show(view, 1, 0, 0);
      else zoom(view, frame, button.dataset.zoom === "in" ? 1.5 : 1 / 1.5);
    });
  }
  frame.addEventListener("keydown", (event) => key(event, root, view, frame));
  frame.addEventListener("wheel", (event) => {
    // Without Ctrl the wheel scrolls the page, unless one is zoomed in already.
    if (!event.ctrlKey && view.scale === 1) return;
    event.preventDefault();
    zoom(view, frame, event.deltaY < 0 ? 1.2 : 1 / 1.2, event);
  }, { passive: false });
  stack.addEventListener("dblclick", (event) => zoom(view, frame, view.scale > 3 ? 1 / view.scale : 2, event));
  drag(frame, view);
}

function key(event, root, view, frame) {
  const step = 60;
  const moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
  if (event.altKey || event.ctrlKey || event.metaKey || event.target !== frame) return;
  if (event.key === "+" || event.key === "=") zoom(view, frame, 1.5);
  else if (event.key === "-") zoom(view, frame, 1 / 1.5);
  else if (event.key === "0") show(view, 1, 0, 0);
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

function show(view, scale, x, y) {
  for (const { frame, stack } of view.views) {
    const width = frame.clientWidth, height = frame.clientHeight;
    view.scale = scale;
    view.x = Math.min(0, Math.max(width - width * scale, x));
    view.y = Math.min(0, Math.max(height - height * scale, y));
    stack.style.transform = scale === 1 ? "" : `translate(${view.x}px, ${view.y}px) scale(${scale})`;
    frame.classList.toggle("zoomed", scale > 1);
    frame.dataset.scale = scale.toFixed(2);
  }
}

function drag(frame, view) {
  let from = null;
  frame.addEventListener("pointerdown", (event) => {
    if (view.scale === 1 || event.button || event.target.closest("button")) return;
    from = { x: event.clientX - view.x, y: event.clientY - view.y };
    frame.setPointerCapture(event.pointerId);
  });
  frame.addEventListener("pointermove", (event) => {
    if (from) show(view, view.scale, event.clientX - from.x, event.clientY - from.y);
  });
  for (const end of ["pointerup", "pointercancel"]) frame.addEventListener(end, () => { from = null; });
  frame.addEventListener("dragstart", (event) => event.preventDefault());
}

// Places over the image, drawn in one size at any zoom and joined where they would overlap, and their table: a click
// in either brings the place to the middle, the pointer over one shows the other. The same clicks fill in the form of
// edits by hand.

const SVG = "http://www.w3.org/2000/svg";
const APART = 20; // pixels on the screen
const MOST_ROWS = 300;
const SHAPES = {
  lost: "M0 -6 A6 6 0 1 1 -.01 -6 Z",
  made: "M-5.5 -5.5 H5.5 V5.5 H-5.5 Z",
  hole: "M0 -7 L6.5 5 H-6.5 Z",
};
const CLASS_OF = { break: "lost", missing: "lost", merge: "made", spurious: "made", hole: "hole" };

export function watchPlaces(own, view, { fly, show }) {
  const overlay = own.root.querySelector("[data-marks]");
  const list = document.querySelector("[data-place-list]");
  own.errors = [];
  own.show = show;
  view.shown.push(() => draw(own, view, overlay));
  if (list) watchTable(own, view, list, overlay, fly);
  watchEdit(own, overlay);
  if (!own.root.dataset.places || !own.root.querySelector(".layer.located")) return;
  const load = async () => {
    try {
      const answer = await fetch(own.root.dataset.places);
      if (!answer.ok) return;
      own.errors = (await answer.json()).errors;
    } catch {
      return; // the picture of the marks stays
    }
    own.fly = (error) => fly(...onPlane(own, error.position));
    own.root.classList.add("drawn");
    if (list) addRows(list, own.errors);
    show();
  };
  load();
}

// [row, column] of a place on the plane that is shown; of a volume the plane is changed to it.
function onPlane(own, position) {
  if (position.length === 2) return position;
  own.goTo?.(position[own.axis]);
  return position.filter((_, axis) => axis !== own.axis);
}

function onScreen(own, view, position) {
  const [row, column] = position.length === 2 ? position : position.filter((_, axis) => axis !== own.axis);
  return [
    view.x + ((column + 0.5) / own.columns) * own.stack.clientWidth * view.scale,
    view.y + ((row + 0.5) / own.rows) * own.stack.clientHeight * view.scale,
  ];
}

function draw(own, view, overlay) {
  const visible = own.errors.filter(({ box }) => box[0].length === 2 || (box[0][own.axis] <= own.plane && own.plane < box[1][own.axis]));
  const groups = [];
  for (const error of visible) {
    const [x, y] = onScreen(own, view, error.position);
    if (x < -APART || y < -APART || x > own.frame.clientWidth + APART || y > own.frame.clientHeight + APART) continue;
    const near = groups.find((group) => Math.hypot(group.x - x, group.y - y) < APART);
    if (near) near.errors.push(error);
    else groups.push({ x, y, errors: [error] });
  }
  const spot = overlay.querySelector(".spot");
  overlay.replaceChildren(...groups.map((group) => mark(own, group)), ...(spot ? [spot] : []));
  if (spot) move(spot, ...onScreen(own, view, spot.dataset.at.split(",").map(Number)));
}

function move(element, x, y) {
  element.style.left = `${x}px`;
  element.style.top = `${y}px`;
}

function mark(own, { x, y, errors }) {
  const [first] = errors;
  const button = document.createElement("button");
  const kind = CLASS_OF[first.kind] ?? "made";
  button.type = "button";
  button.tabIndex = -1; // the table is the way by keyboard
  button.setAttribute("aria-hidden", "true");
  button.title = errors.length > 1 ? `${errors.length} places` : `${first.kind} of ${first.class}, ${first.size} px`;
  button.dataset.at = first.position.join(",");
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("viewBox", "-12 -12 24 24");
  drawing.setAttribute("class", `mark-${kind}`);
  for (const name of ["under", "over"]) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", SHAPES[kind]);
    path.setAttribute("class", name);
    drawing.append(path);
  }
  if (errors.length > 1) {
    const count = document.createElementNS(SVG, "text");
    count.setAttribute("y", "3");
    count.textContent = errors.length;
    drawing.append(count);
  }
  button.append(drawing);
  move(button, x, y);
  button.addEventListener("click", () => own.fly(first));
  button.addEventListener("pointerenter", () => {
    for (const error of errors) rowOf(error.position.join(","))?.classList.add("here");
  });
  button.addEventListener("pointerleave", () => {
    for (const row of document.querySelectorAll("tr.here")) row.classList.remove("here");
  });
  return button;
}

function rowOf(at) {
  return document.querySelector(`[data-place-list] tr[data-at="${at}"]`);
}

// The table ---------------------------------------------------------------------------------------------------------

function addRows(list, errors) {
  const body = list.querySelector("tbody");
  for (const error of errors.slice(0, MOST_ROWS)) {
    const row = body.insertRow();
    row.dataset.at = error.position.join(",");
    row.dataset.kind = `wrong: ${error.kind}`;
    const cells = [error.position.join(", "), row.dataset.kind, error.class, "–", String(error.size)];
    cells.forEach((text, index) => {
      const cell = index === 1 ? row.appendChild(document.createElement("th")) : row.insertCell();
      if (index === 1) cell.scope = "row";
      if (index !== 1 && index !== 2) cell.className = "n";
      cell.textContent = text;
    });
  }
  list.hidden = false;
  list.dispatchEvent(new Event("rows"));
}

function watchTable(own, view, list, overlay, fly) {
  const body = list.querySelector("tbody");
  const filter = list.querySelector("[data-place-filter]");
  const count = list.querySelector("[data-place-count]");
  for (const tools of list.querySelectorAll("[data-tools]")) tools.hidden = false;
  const refresh = () => {
    for (const row of body.rows) {
      const cell = row.cells[0];
      if (cell.querySelector("button")) continue;
      const button = document.createElement("button");
      button.type = "button";
      button.className = "link";
      button.textContent = cell.textContent;
      cell.replaceChildren(button);
    }
    const kinds = [...new Set([...body.rows].map((row) => row.dataset.kind))].sort();
    const chosen = filter.value;
    filter.replaceChildren(new Option("all", ""), ...kinds.map((kind) => new Option(kind, kind)));
    filter.value = kinds.includes(chosen) ? chosen : "";
    choose();
  };
  const choose = () => {
    let seen = 0;
    for (const row of body.rows) {
      row.hidden = filter.value !== "" && row.dataset.kind !== filter.value;
      seen += !row.hidden;
    }
    count.textContent = `${seen} of ${body.rows.length} places`;
  };
  filter.addEventListener("change", choose);
  list.addEventListener("rows", refresh);
  const visit = (row) => {
    const at = row.dataset.at.split(",").map(Number);
    spotAt(overlay, row.dataset.at);
    fly(...onPlane(own, at));
    own.frame.scrollIntoView({ block: "nearest" });
  };
  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (row) visit(row);
  });
  body.addEventListener("pointerover", (event) => light(overlay, event.target.closest("tr")));
  body.addEventListener("pointerleave", () => light(overlay, null));
  watchDiagram(own, overlay, visit);
  sortable(list.querySelector("table"));
  refresh();
}

function light(overlay, row) {
  for (const button of overlay.querySelectorAll("button")) button.classList.toggle("here", button.dataset.at === row?.dataset.at);
  for (const point of document.querySelectorAll("[data-diagram] a")) point.classList.toggle("here", point.getAttribute("href") === `#${row?.id}`);
}

// The points of a diagram stand for rows of the table: a click visits the place, the pointer over one shows both.
function watchDiagram(own, overlay, visit) {
  const diagram = document.querySelector("[data-diagram]");
  const rowAt = (event) => document.getElementById(event.target.closest("a")?.getAttribute("href").slice(1));
  let [shown, visited] = [null, null];
  const show = (row) => {
    if (row === shown) return;
    shown?.classList.remove("here");
    row?.classList.add("here");
    shown = row;
    overlay.querySelector(".spot")?.remove();
    if (row ?? visited) spotAt(overlay, (row ?? visited).dataset.at);
    light(overlay, row);
    own.show();
  };
  diagram?.addEventListener("click", (event) => {
    const row = rowAt(event);
    if (!row) return;
    event.preventDefault();
    visited = row;
    row.parentElement.closest("[role=region]").scrollTop = row.offsetTop - row.offsetParent.offsetTop - 40;
    visit(row);
  });
  diagram?.addEventListener("pointerover", (event) => show(rowAt(event)));
  diagram?.addEventListener("pointerleave", () => show(null));
}

function spotAt(overlay, at) {
  overlay.querySelector(".spot")?.remove();
  const spot = document.createElement("span");
  spot.className = "spot";
  spot.dataset.at = at;
  overlay.append(spot);
}

function sortable(table) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0];
      const sorted = [...body.rows].sort((a, b) => compare(a.cells[column].textContent, b.cells[column].textContent) * (down ? -1 : 1));
      body.append(...sorted);
    });
  });
}

function compare(a, b) {
  const [x, y] = [a, b].map((text) => Number(text.replaceAll(" ", "").replace("−", "-").split(",")[0]));
  if (!Number.isNaN(x) && !Number.isNaN(y)) return x - y;
  if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1; // without a figure: last
  return a.localeCompare(b);
}

// Edits by hand ----------------------------------------------------------------------------------------------------

function watchEdit(own, overlay) {
  const pick = document.querySelector("[data-edit] [data-pick]");
  if (!pick) return;
  const [at, to, kind] = ["at", "to", "kind"].map((name) => document.getElementById(`edit-${name}`));
  pick.hidden = false;
  const picking = () => own.frame.classList.contains("picking");
  const choose = (on) => {
    own.frame.classList.toggle("picking", on);
    pick.setAttribute("aria-pressed", String(on));
    pick.textContent = on ? "Click the place in the image" : "Pick in the image";
  };
  pick.addEventListener("click", () => {
    choose(!picking());
    if (picking()) {
      at.value = to.value = "";
      own.frame.scrollIntoView({ block: "nearest" });
    }
  });
  own.stack.addEventListener("click", (event) => {
    if (!picking() || own.moved) return;
    const box = own.stack.getBoundingClientRect();
    const row = Math.floor(((event.clientY - box.top) / box.height) * own.rows);
    const column = Math.floor(((event.clientX - box.left) / box.width) * own.columns);
    const place = [row, column];
    if (own.axis !== undefined) place.splice(own.axis, 0, own.plane);
    const written = place.join(", ");
    if (!at.value) at.value = written;
    else to.value = written;
    spotAt(overlay, place.join(","));
    own.show();
    const two = kind.value === "connect" || kind.value === "cut";
    if (!two || to.value) choose(false);
    else pick.textContent = "Click the other side, or press Edit";
  });
}

// The planes of a volume by wheel, slider and keys, along any of its axes, with the letters of the body at the edges.

import { setQuery } from "./viewer.js";

const NOUNS = ["Plane", "Row", "Column"];

export function watchSlices(own, view) {
  const facts = JSON.parse(own.root.dataset.slices);
  const slider = own.root.querySelector("[data-plane]");
  Object.assign(own, { axis: facts.axis, plane: facts.plane });
  slider.hidden = false;
  own.goTo = (plane) => {
    const next = Math.min(facts.sizes[own.axis] - 1, Math.max(0, plane));
    if (next === own.plane) return;
    own.plane = next;
    slider.value = next;
    for (const picture of own.stack.querySelectorAll("img")) setQuery(picture, { axis: own.axis, plane: next });
    const caption = own.root.querySelector("[data-caption]");
    if (caption) caption.textContent = `${NOUNS[own.axis]} ${next + 1} of ${facts.sizes[own.axis]}; all figures are of the whole volume.`;
    for (const [name, step] of [["before", -1], ["after", 1]]) {
      const link = own.root.querySelector(`[data-step="${step}"]`);
      if (link) link.href = `?axis=${own.axis}&plane=${Math.min(facts.sizes[own.axis] - 1, Math.max(0, next + step))}`;
    }
    const address = new URL(location.href);
    address.searchParams.set("axis", own.axis);
    address.searchParams.set("plane", next);
    history.replaceState(history.state, "", address);
    for (const redraw of view.shown) redraw();
  };
  own.step = (by) => own.goTo(own.plane + by);
  let turned = 0;
  own.wheel = (event) => {
    event.preventDefault();
    turned += event.deltaMode ? event.deltaY * 40 : event.deltaY;
    if (Math.abs(turned) < 30) return;
    own.step(Math.sign(turned));
    turned = 0;
  };
  slider.addEventListener("input", () => own.goTo(Number(slider.value)));
  for (const link of own.root.querySelectorAll("[data-step]")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      own.step(Number(link.dataset.step));
    });
  }
  letters(own, facts);
}

async function letters(own, facts) {
  try {
    const { ends } = await (await fetch(own.root.dataset.axes)).json();
    if (!ends) return;
    const [down, across] = [0, 1, 2].filter((axis) => axis !== own.axis);
    const sides = { top: ends[down][0], bottom: ends[down][1], left: ends[across][0], right: ends[across][1] };
    for (const [side, letter] of Object.entries(sides)) {
      const mark = document.createElement("span");
      mark.className = `direction direction-${side}`;
      mark.textContent = letter;
      mark.title = { R: "right", L: "left", A: "front", P: "back", S: "up", I: "down" }[letter];
      own.frame.append(mark);
    }
  } catch {
    // without letters the picture is the same
  }
}

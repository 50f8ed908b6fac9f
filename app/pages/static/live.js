// A running job as it happens. Progress events move the bar at once; everything else (curves, log, buttons) is drawn
// by the server, so the live part of the page is fetched again, at most once in REDRAW_MS.

import { watchCharts } from "./charts.js";
import { duration } from "./times.js";

const REDRAW_MS = 2000;
const LIST_MS = 5000;

export function followJob() {
  const live = document.getElementById("live");
  if (!live || !live.dataset.live) return;
  // EventSource sends Last-Event-ID by itself when it reconnects; `after` says where the page begins.
  const events = new EventSource(`${live.dataset.live}?after=${live.dataset.last}`);
  let timer = null;
  const redrawSoon = (wait = REDRAW_MS) => {
    timer ??= setTimeout(async () => {
      timer = null;
      if (!(await redraw("live"))) redrawSoon();
      else if (!document.getElementById("live").dataset.live) events.close();
    }, wait);
  };
  events.addEventListener("progress", (event) => {
    moveBar(document.querySelector("#live [data-progress]"), JSON.parse(event.data));
    redrawSoon();
  });
  events.addEventListener("state", () => redrawSoon(50));
  for (const name of ["metric", "checkpoint", "log"]) events.addEventListener(name, () => redrawSoon());
  document.documentElement.dataset.following = "yes";
}

export function followList() {
  if (document.getElementById("live") || !document.querySelector("[data-progress]")) return;
  setInterval(() => {
    if (!document.hidden) redraw("main");
  }, LIST_MS);
}

function moveBar(bar, progress) {
  if (!bar) return;
  if (typeof progress.fraction === "number") {
    bar.querySelector("progress").value = progress.fraction;
    bar.querySelector("[data-percent]").textContent = `${Math.round(progress.fraction * 100)} %`;
    document.title = document.title.replace(/^\d+ %/, `${Math.round(progress.fraction * 100)} %`);
  }
  if (progress.phase) bar.querySelector("[data-phase]").textContent = progress.phase;
  if (progress.steps) bar.querySelector("[data-step]").textContent = `step ${progress.step ?? 0} of ${progress.steps}`;
  if (typeof progress.eta_s === "number") bar.querySelector("[data-eta]").textContent = `ends in about ${duration(progress.eta_s)}`;
}

// Replace one element of the page by the same element of the page as it is now. What was focused, opened or scrolled
// stays so; a chart that is being read is left alone.
async function redraw(id) {
  const here = document.getElementById(id);
  if (here.querySelector("[data-chart]:hover")) return false;
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (!answer.ok || answer.redirected) return false;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const there = page.getElementById(id);
    if (!there) return false;
    document.title = page.title;
    const focused = places(here).indexOf(document.activeElement);
    const log = here.querySelector(".log");
    const atEnd = !log || log.scrollTop + log.clientHeight >= log.scrollHeight - 4;
    [...there.querySelectorAll("details")].forEach((each, index) => { each.open = here.querySelectorAll("details")[index]?.open ?? false; });
    here.replaceWith(there);
    const newLog = there.querySelector(".log");
    if (newLog) newLog.scrollTop = atEnd ? newLog.scrollHeight : log.scrollTop;
    if (focused >= 0) places(there)[focused]?.focus({ preventScroll: true });
    watchCharts(there);
    return true;
  } catch {
    return false; // the service is away for a moment; the next try draws again
  }
}

function places(element) {
  return [...element.querySelectorAll("a, button, input, select, summary, [tabindex]")];
}

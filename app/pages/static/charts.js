// A readout for the charts: the values at the step under the pointer, shown in the legend.

const SVG = "http://www.w3.org/2000/svg";

export function watchCharts(root) {
  for (const chart of root.querySelectorAll("[data-chart] svg[data-points]")) watch(chart);
}

function watch(chart) {
  const points = JSON.parse(chart.dataset.points);
  const plot = JSON.parse(chart.dataset.plot);
  const legend = chart.closest("[data-chart]").querySelectorAll("[data-value]");
  const last = new Map([...legend].map((value) => [value, value.textContent]));
  const cross = document.createElementNS(SVG, "path");
  cross.setAttribute("class", "cross");
  const label = document.createElementNS(SVG, "text");
  label.setAttribute("class", "x");
  label.setAttribute("y", "8");

  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * plot.width;
    const share = Math.min(1, Math.max(0, (x - plot.left) / (plot.right - plot.left)));
    const step = nearest(Object.values(points).flat().map((point) => point[0]), plot.low + share * (plot.high - plot.low));
    const at = plot.left + ((step - plot.low) / (plot.high - plot.low || 1)) * (plot.right - plot.left);
    cross.setAttribute("d", `M${at} ${plot.top} V${plot.bottom}`);
    label.setAttribute("x", Math.min(plot.right - 22, Math.max(plot.left + 22, at)));
    label.textContent = `step ${step}`;
    chart.append(cross, label);
    for (const value of legend) {
      const series = points[value.dataset.value];
      const there = series[indexOfNearest(series.map((point) => point[0]), step)];
      value.textContent = String(Number(there[1].toPrecision(3)));
    }
  });
  chart.addEventListener("pointerleave", () => {
    cross.remove();
    label.remove();
    for (const [value, text] of last) value.textContent = text;
  });
}

function indexOfNearest(numbers, wanted) {
  let best = 0;
  numbers.forEach((number, index) => {
    if (Math.abs(number - wanted) < Math.abs(numbers[best] - wanted)) best = index;
  });
  return best;
}

function nearest(numbers, wanted) {
  return numbers[indexOfNearest(numbers, wanted)];
}

// Small charts: bars that are stacked, or lines. The same numbers stand in a table beneath.
import { clock, day, drawn, make, renew } from "./dom.js";

const WIDTH = 600;
const HEIGHT = 120;

// series: [{name, title}]; points: [{timestamp, …}]; format: how a value is written.
export function chart({ title, kind, series, format }) {
  const svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", tabindex: "0" });
  const top = make("span");
  const legend = make("ul", { class: "legend" });
  const times = make("div", { class: "times" });
  const holder = make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": `${title}, as a table` });
  const details = make("details", { ontoggle: () => tell() }, make("summary", {}, "As a table"), holder);
  const figure = make("figure", { class: "card" }, make("figcaption", {}, title),
    make("div", { class: "plot" }, make("div", { class: "scale", "aria-hidden": "true" }, top, make("span", {}, "0")), svg, times),
    legend, details);
  let points = [];
  let chosen = null;
  let most = 1;

  const shown = (point) => series.map(({ name }) => point?.[name]);

  function when(point) {
    const date = new Date(point.timestamp);
    return points.length && points.at(-1).timestamp - points[0].timestamp > 7200000 ? `${day(date).slice(5)} ${clock(date)}` : clock(date);
  }

  function draw() {
    const values = points.map(shown);
    const sums = values.map((each) => kind === "bars" ? each.reduce((sum, value) => sum + (value ?? 0), 0) : Math.max(0, ...each.map((value) => value ?? 0)));
    most = rounded(Math.max(...sums, 0));
    top.textContent = format(most);
    const step = WIDTH / Math.max(points.length, 1);
    const y = (value) => HEIGHT - (value / most) * HEIGHT;
    const parts = [0, 0.5, 1].map((share) => drawn("line", { class: "grid", x1: 0, x2: WIDTH, y1: share * HEIGHT, y2: share * HEIGHT }));
    if (chosen !== null) parts.push(drawn("rect", { class: "mark", x: chosen * step, y: 0, width: step, height: HEIGHT }));
    if (kind === "bars") {
      values.forEach((each, at) => {
        let below = 0;
        each.forEach((value, which) => {
          if (!value) return;
          const height = (value / most) * HEIGHT;
          parts.push(drawn("rect", { class: series[which].name, x: at * step + step * 0.1, y: HEIGHT - below - height, width: step * 0.8, height }));
          below += height;
        });
      });
    } else {
      series.forEach(({ style }, which) => {
        let path = "";
        let drawing = false;
        values.forEach((each, at) => {
          if (each[which] === null || each[which] === undefined) { drawing = false; return; }
          const x = (at + 0.5) * step;
          const height = y(each[which]).toFixed(1);
          if (drawing) path += `L${x.toFixed(1)} ${height}`;
          else if ((values[at + 1]?.[which] ?? null) === null) path += `M${(x - step / 2).toFixed(1)} ${height}h${step.toFixed(1)}`;
          else path += `M${x.toFixed(1)} ${height}`;
          drawing = true;
        });
        if (path) parts.push(drawn("path", { class: `line ${style}`, d: path }));
      });
    }
    svg.replaceChildren(...parts);
    times.replaceChildren(...(points.length ? [make("span", {}, when(points[0])), make("span", {}, when(points[Math.floor(points.length / 2)])), make("span", {}, "now")] : []));
    read();
  }

  // What the marked length of time has, or the last one.
  function read() {
    const point = points[chosen ?? points.length - 1];
    const items = point ? series.map(({ name, title: called, style }) =>
      make("li", {}, key(style ?? name), `${called}: ${format(point[name])}`)) : [];
    legend.replaceChildren(make("li", {}, point ? when(point) : ""), ...items);
    svg.setAttribute("aria-label", `${title}. ${point ? when(point) : ""}: ${series.map(({ name, title: called }) => `${called} ${format(point?.[name])}`).join(", ")}`);
  }

  function tell() {
    if (!details.open) return;
    const head = make("tr", {}, make("th", { scope: "col" }, "From"), series.map(({ title: called }) => make("th", { scope: "col", class: "number" }, called)));
    const rows = [...points].reverse().map((point) => make("tr", {}, make("th", { scope: "row" }, when(point)),
      series.map(({ name }) => make("td", { class: "number" }, format(point[name])))));
    renew(holder, make("table", {}, make("caption", {}, title), make("thead", {}, head), make("tbody", {}, rows)));
  }

  function choose(at) {
    chosen = at === null ? null : Math.max(0, Math.min(points.length - 1, at));
    draw();
  }

  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    choose(Math.floor(((event.clientX - box.left) / box.width) * points.length));
  });
  svg.addEventListener("pointerleave", () => choose(null));
  svg.addEventListener("blur", () => choose(null));
  svg.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, Home: -points.length, End: points.length }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    choose((chosen ?? points.length - 1) + by);
  });

  return {
    element: figure,
    update(next) {
      points = next;
      if (chosen !== null && chosen >= points.length) chosen = null;
      draw();
      tell();
    },
  };
}

function key(style) {
  return drawn("svg", { viewBox: "0 0 10 10", "aria-hidden": "true" }, drawn("rect", { class: style, width: 10, height: 10, rx: 2 }));
}

// The next number that is easy to read: 1, 2 or 5 times a power of ten.
function rounded(value) {
  if (value <= 1) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= value);
}

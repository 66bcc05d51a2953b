import { get, Failed } from "./api.js";
import { chart } from "./chart.js";
import { chip, duration, make, number, renew } from "./dom.js";

const STATUSES = [
  { name: "allowed", title: "allowed" }, { name: "not_allowed", title: "not allowed" },
  { name: "unknown", title: "unknown" }, { name: "invalid", title: "invalid" },
];

const SILENT_MS = 2500;

export function show(content, { every, left, values, rename }) {
  const sentences = make("ul", { class: "sentences", "aria-live": "polite", "aria-label": "What is wrong" });
  const tiles = make("dl", { class: "tiles" });
  const components = make("dl", { class: "components" });
  const circuits = make("dl", { class: "components" });
  const processes = make("dl", { class: "components" });
  const others = make("section", { class: "card", id: "processes", tabindex: "-1", hidden: true }, make("h2", {}, "Other processes"), processes);
  const charts = [
    [chart({ title: "Decisions", kind: "bars", series: STATUSES, format: number }), (series) => series],
    [chart({
      title: "From accepted to delivered", kind: "lines", format: duration,
      series: [{ name: "p50_ms", title: "p50", style: "p50" }, { name: "p95_ms", title: "p95", style: "p95" }, { name: "p99_ms", title: "p99", style: "p99" }],
    }), (series) => series],
    [chart({
      title: "Waiting for a worker", kind: "lines", format: number,
      series: [{ name: "waiting", title: "requests", style: "first" }, { name: "oldest_s", title: "seconds of the oldest", style: "second" }],
    }), (series) => series.map((point) => ({ ...point, oldest_s: point.oldest_age_ms === null ? null : Math.round(point.oldest_age_ms / 100) / 10 }))],
    [chart({
      title: "Accepted, and dead letters", kind: "lines", format: number,
      series: [{ name: "accepted", title: "accepted", style: "first" }, { name: "dead_letters", title: "dead letters", style: "p99" }],
    }), (series) => series],
    [chart({
      title: "The audit sink furthest behind", kind: "lines", format: duration,
      series: [{ name: "sink_lag_ms", title: "behind by", style: "first" }],
    }), (series) => series],
    [chart({
      title: "Open circuits, and anomalies that go on", kind: "lines", format: number,
      series: [{ name: "open_circuits", title: "circuits", style: "first" }, { name: "anomalies", title: "anomalies", style: "second" }],
    }), (series) => series],
  ];
  let range = values.range === "day" ? "day" : "hour";
  let latest = null;
  const choice = (value, title) => make("label", {}, make("input", {
    type: "radio", name: "range", value, checked: range === value,
    onchange: () => { range = value; rename(value === "day" ? "?range=day" : location.pathname); draw(); },
  }), title);
  content.append(make("h1", {}, "Overview"), sentences, tiles,
    make("div", { class: "between" }, make("h2", {}, "In the course of time"),
      make("fieldset", { class: "segments" }, make("legend", {}, "Range"), choice("hour", "Last hour"), choice("day", "Last day"))),
    make("div", { class: "charts" }, charts.map(([each]) => each.element)),
    make("section", { class: "card", id: "components", tabindex: "-1" }, make("h2", {}, "Components"), components),
    make("section", { class: "card" }, make("h2", {}, "Circuits and audit sinks"), circuits), others);
  let told = "";
  let heard = "";

  function draw() {
    if (!latest) return;
    for (const [each, points] of charts) each.update(points(latest[range].points));
  }

  function wrong(problems) {
    const now = JSON.stringify(problems);
    if (now === told) return;
    told = now;
    // Numbers that go on are shown, and not read out each second.
    const kinds = now.replace(/\d+/g, "");
    sentences.setAttribute("aria-live", kinds === heard ? "off" : "polite");
    heard = kinds;
    renew(sentences, ...(problems.length ? problems.map(({ severity, text, page }) =>
      make("li", { class: severity }, page ? make("a", { href: page.replace(/^\/dashboard#/, "#") }, text) : text)) : [make("li", { class: "good" }, "Everything works.")]));
  }

  function tile(title, value, small = "", href = null) {
    return make("div", { class: "tile" }, make("dt", {}, href ? make("a", { href }, title) : title), make("dd", {}, value), make("dd", { class: "small" }, small));
  }

  every(1000, async () => {
    try {
      update(await get("/api/v1/overview", { background: true, signal: left }));
    } catch (error) {
      if (left.aborted) return;
      const why = error instanceof Failed ? error.message : "The service is of another release. Load the page again.";
      wrong([{ severity: "critical", text: `This page is not up to date: ${why}`, page: "" }]);
    }
  });

  function update(overview) {
    const { now, per_second: rate, components: parts } = overview;
    const decided = rate.allowed + rate.not_allowed + rate.unknown + rate.invalid;
    renew(tiles,
      tile("Accepted a second", number(rate.accepted, 1)),
      tile("Decided a second", number(decided, 1), STATUSES.filter(({ name }) => rate[name]).map(({ name, title }) => `${number(rate[name], 1)} ${title}`).join(", "), "/dashboard/requests"),
      tile("Delivered within, p95", duration(now.p95_ms), `p50 ${duration(now.p50_ms)}, p99 ${duration(now.p99_ms)}`),
      tile("Waiting for a worker", number(now.waiting), now.waiting ? `the oldest for ${duration(now.oldest_age_ms)}` : ""),
      tile("Under way", number(overview.in_flight), parts.callbacks?.details.parked ? `${number(parts.callbacks.details.parked)} callbacks wait` : ""),
      tile("Dead letters", number(now.dead_letters), "", "/dashboard/dead-letters"),
      tile("Anomalies", number(overview.anomalies), overview.anomalies ? "go on" : "", "/dashboard/anomalies?open=true"));
    renew(components, ...Object.entries(parts).map(([name, { status, details }]) =>
      make("div", {}, make("dt", {}, name, " ", chip(status)), make("dd", { class: "soft" }, told_of(details)))));
    renew(circuits,
      ...overview.circuits.map(({ name, state }) => make("div", {}, make("dt", {}, `Circuit: ${name} `, chip(state)), make("dd"))),
      ...overview.sinks.map(({ sink, seconds }) => make("div", {}, make("dt", {}, `Sink: ${sink}`), make("dd", { class: "soft" }, `${number(seconds, 1)} s behind`))),
      overview.circuits.length || overview.sinks.length ? null : make("div", {}, make("dt", {}, "None"), make("dd", { class: "soft" }, "No worker tells of any.")));
    others.hidden = !overview.processes.length;
    renew(processes, ...overview.processes.map(({ name, role, silent_ms: silent }) =>
      make("div", {}, make("dt", {}, name), make("dd", { class: "soft" }, `${role}, ${silent < SILENT_MS ? "heard from just now" : `not heard from for ${duration(silent)}`}`))));
    wrong(overview.problems);
    latest = overview;
    draw();
  }
}

function told_of(details) {
  return Object.entries(details).map(([name, value]) => `${name.replaceAll("_", " ")}: ${value}`).join(", ");
}

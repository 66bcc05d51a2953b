import { get, query } from "./api.js";
import { duration, make, number, table } from "./dom.js";
import { problem } from "./requests.js";

const HOURS = [["1", "this hour"], ["24", "24 hours"], ["168", "7 days"]];

export async function show(content, { values, go, left }) {
  const hours = HOURS.some(([value]) => value === values.hours) ? values.hours : "24";
  const radio = ([value, title]) => make("label", {}, make("input", { type: "radio", name: "hours", value, checked: value === hours, onchange: () => go(`/dashboard/stations${query({ hours: value })}`, true) }), title);
  const busiest = make("section", { class: "card" }, make("h2", {}, "Busiest"));
  const worst = make("section", { class: "card" }, make("h2", {}, "Worst"));
  content.append(make("div", { class: "between" }, make("h1", {}, "Stations"),
    make("fieldset", { class: "segments" }, make("legend", {}, "In the last"), HOURS.map(radio))), busiest, worst);
  const columns = [
    ["Station", (item) => make("a", { href: `/dashboard/requests${query({ station_id: item.station_id })}`, class: "id" }, item.station_id)],
    ["Decisions", (item) => number(item.total), "number"],
    ["Allowed", (item) => number(item.allowed), "number"],
    ["Not allowed", (item) => number(item.not_allowed), "number"],
    ["Unknown", (item) => number(item.unknown), "number"],
    ["Invalid", (item) => number(item.invalid), "number"],
    ["Errors", (item) => `${number((item.error_rate ?? 0) * 100, 1)} %`, "number"],
    ["Average", (item) => duration(item.average_ms), "number"],
  ];
  const fill = async (section, by, caption, empty) => {
    try {
      const { items } = await get(`/api/v1/statistics/busiest-stations${query({ by, hours, limit: 20 })}`, { signal: left });
      section.append(table(caption, columns, items, empty));
    } catch (error) {
      if (error.name !== "AbortError") section.append(problem(error));
    }
  };
  await Promise.all([
    fill(busiest, "total", "Those with the most decisions", "No station got a decision."),
    fill(worst, "error_rate", "Those with the largest share of unknown and invalid decisions, of at least 5", "No station had errors."),
  ]);
}

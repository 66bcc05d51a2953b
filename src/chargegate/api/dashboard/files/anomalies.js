import { get, query } from "./api.js";
import { chip, code, field, make, moment, number, table } from "./dom.js";
import { pager, problem } from "./requests.js";

const PATH = "/dashboard/anomalies";
const TYPES = ["HIGH_TIMEOUT_RATE", "STATION_HIGH_ERROR_RATE", "STATION_SILENT", "TOKEN_DENIED_WIDELY", "CLIENT_CALLBACKS_FAILING"];

export async function show(content, { values, go, left }) {
  const type = make("select", { name: "type" }, make("option", { value: "" }, "any"), TYPES.map((each) => make("option", { value: each, selected: each === values.type }, each)));
  const open = make("input", { type: "checkbox", name: "open", checked: values.open === "true" });
  const list = make("div", { "aria-live": "polite" }, make("p", { class: "soft loading" }, "…"));
  content.append(make("h1", {}, "Anomalies"), make("section", { class: "card" }, make("h2", {}, "Filter"), make("form", {
    class: "fields",
    onsubmit: (event) => { event.preventDefault(); go(PATH + query({ type: type.value, open: open.checked ? "true" : "" })); },
  }, field("Type", type), make("label", { class: "check" }, open, "Only those that go on"), make("div", { class: "row" }, make("button", { class: "main" }, "Filter"), make("a", { href: PATH }, "Show all")))),
  make("section", { class: "card" }, list));
  try {
    const page = await get(`/api/v1/anomalies${query({ type: values.type, open: values.open, limit: 50, cursor: values.cursor })}`, { signal: left });
    list.replaceChildren(table("Newest first", [
      ["Since", (item) => moment(item.since)], ["Until", (item) => item.until ? moment(item.until) : "goes on"],
      ["Severity", (item) => chip(item.severity)], ["Type", (item) => code(item.type)], ["Subject", (item) => make("span", { class: "id" }, item.subject)],
      ["What", (item) => item.description], ["Value", (item) => number(item.value, 3), "number"], ["Threshold", (item) => number(item.threshold, 3), "number"],
    ], page.items, "No anomalies."), pager(page, values, PATH));
  } catch (error) {
    if (error.name === "AbortError") return;
    list.replaceChildren(error.status === 404 ? make("p", {}, "This release does not look for anomalies.") : problem(error));
  }
}

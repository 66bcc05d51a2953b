import { get, query } from "./api.js";
import { chip, duration, field, make, moment, table } from "./dom.js";

const UUID = /^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$/;
const FILTERS = ["station_id", "client", "status", "reason", "from", "to"];
export const REASONS = ["driver_not_in_acl", "token_blocked", "token_expired", "token_not_yet_valid", "not_at_this_location",
  "authorization_timeout", "authorization_error", "circuit_open", "expired_in_queue", "malformed_request"];

export async function show(content, { visitor, values, go, left }) {
  const admin = visitor.role === "admin";
  const id = make("input", { name: "request_id", autocomplete: "off", spellcheck: "false", placeholder: "the whole id" });
  const fault = make("p", { class: "fault", role: "alert" });
  const lookUp = make("form", {
    class: "fields",
    onsubmit: (event) => {
      event.preventDefault();
      const asked = id.value.trim();
      if (UUID.test(asked)) go(`/dashboard/requests/${asked.toLowerCase()}`);
      else { fault.textContent = "A request id looks like 01890a5d-ac96-774b-bcce-b302099a8057."; id.setAttribute("aria-invalid", "true"); id.focus(); }
    },
  }, field("Request id", id), make("div", {}, make("button", { class: "main" }, "Show this request")), make("div", { class: "wide" }, fault));
  content.append(make("h1", {}, "Requests"), make("section", { class: "card" }, make("h2", {}, "One request"), lookUp));
  if (!admin) {
    content.append(make("p", { class: "soft" }, "A client reads its own requests by their ids. The list of all is for administrators."));
    return;
  }
  const inputs = {
    station_id: make("input", { name: "station_id", value: values.station_id, autocomplete: "off", spellcheck: "false" }),
    client: make("input", { name: "client", value: values.client, autocomplete: "off", spellcheck: "false" }),
    status: select("status", ["allowed", "not_allowed", "unknown", "invalid"], values.status),
    reason: make("input", { name: "reason", value: values.reason, list: "reasons", autocomplete: "off", spellcheck: "false" }),
    from: timeInput("from", values.from), to: timeInput("to", values.to),
  };
  const filter = make("form", {
    class: "fields",
    onsubmit: (event) => {
      event.preventDefault();
      go(`/dashboard/requests${query({
        station_id: inputs.station_id.value.trim(), client: inputs.client.value.trim(), status: inputs.status.value,
        reason: inputs.reason.value.trim(), from: asIso(inputs.from.value), to: asIso(inputs.to.value),
      })}`);
    },
  },
  field("Station", inputs.station_id), field("Client", inputs.client), field("Status", inputs.status), field("Reason", inputs.reason),
  field("From", inputs.from), field("To", inputs.to),
  make("datalist", { id: "reasons" }, REASONS.map((reason) => make("option", { value: reason }))),
  make("div", { class: "row" }, make("button", { class: "main" }, "Filter"), make("a", { href: "/dashboard/requests" }, "Show all")));
  const list = make("div", { "aria-live": "polite" }, make("p", { class: "soft loading" }, "…"));
  content.append(make("section", { class: "card" }, make("h2", {}, "Filter"), filter), make("section", { class: "card" }, list));
  const asked = Object.fromEntries(FILTERS.map((name) => [name, values[name]]));
  try {
    const page = await get(`/api/v1/decisions${query({ ...asked, limit: 50, cursor: values.cursor })}`, { signal: left });
    list.replaceChildren(
      table("Decisions, newest first", [
        ["Decided", (item) => moment(item.timestamp)],
        ["Request", (item) => make("a", { href: `/dashboard/requests/${item.request_id}`, class: "id" }, item.request_id)],
        ["Station", (item) => make("a", { href: `/dashboard/requests${query({ station_id: item.station_id })}`, class: "id" }, item.station_id)],
        ["Status", (item) => chip(item.status)],
        ["Reason", (item) => item.reason || "–"],
        ["Took", (item) => duration(item.processing_time_ms), "number"],
      ], page.items, "No decision matches."),
      pager(page, values, "/dashboard/requests"));
  } catch (error) {
    if (error.name !== "AbortError") list.replaceChildren(problem(error));
  }
}

// How an attempt ended; the service's own word for a status says the same as the status.
export function outcome(statusCode, error) {
  const said = error === `http_${statusCode}` ? "" : error;
  return [statusCode ? `HTTP ${statusCode}` : "", said ?? ""].filter(Boolean).join(", ") || "no answer";
}

export function problem(error) {
  const details = Object.entries(error.details ?? {}).map(([name, rule]) => make("li", {}, `${name}: ${rule}`));
  return make("div", { role: "alert" }, make("p", { class: "fault" }, error.message), details.length ? make("ul", {}, details) : null);
}

export function pager(page, values, path) {
  const { cursor, ...rest } = values;
  if (!cursor && !page.next_cursor) return "";
  return make("p", { class: "row" }, cursor ? make("a", { href: path + query(rest) }, "Newest") : null,
    page.next_cursor ? make("a", { href: path + query({ ...rest, cursor: page.next_cursor }) }, "Older") : null);
}

function select(name, options, value) {
  return make("select", { name }, make("option", { value: "" }, "any"), options.map((option) => make("option", { value: option, selected: option === value }, option.replace("_", " "))));
}

export function timeInput(name, value) {
  const date = value ? new Date(value) : null;
  const local = date && !Number.isNaN(date.getTime()) ? new Date(date - date.getTimezoneOffset() * 60000).toISOString().slice(0, 19) : "";
  return make("input", { type: "datetime-local", step: "1", name, value: local });
}

export function asIso(local) { return local ? new Date(local).toISOString() : ""; }

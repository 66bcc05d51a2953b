import { get, now, query } from "./api.js";
import { chip, code, duration, field, make, moment, table } from "./dom.js";

const PATH = "/dashboard/requests";
const UUID = /^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$/;
// What is listed, and by which of the filters: those of the route that has it.
const STATES = {
  "": { title: "decided", path: "/api/v1/decisions", filters: ["station_id", "client", "status", "reason", "from", "to"] },
  under_way: { title: "under way", path: "/api/v1/requests", filters: ["station_id", "client"] },
  given_up: { title: "given up", path: "/api/v1/dead-letters", filters: ["client", "from", "to"] },
  timed_out: { title: "timed out", path: "/api/v1/decisions", filters: ["station_id", "client", "from", "to"], always: { reason: "authorization_timeout" } },
};
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
  const state = make("select", { name: "state", onchange: () => enable() }, Object.entries(STATES).map(([name, { title }]) => make("option", { value: name, selected: name === values.state }, title)));
  const inputs = {
    station_id: make("input", { name: "station_id", value: values.station_id, autocomplete: "off", spellcheck: "false" }),
    client: make("input", { name: "client", value: values.client, autocomplete: "off", spellcheck: "false" }),
    status: select("status", ["allowed", "not_allowed", "unknown", "invalid"], values.status),
    reason: make("input", { name: "reason", value: values.reason, list: "reasons", autocomplete: "off", spellcheck: "false" }),
    from: timeInput("from", values.from), to: timeInput("to", values.to),
  };
  const enable = () => { for (const [name, input] of Object.entries(inputs)) input.disabled = !STATES[state.value].filters.includes(name); };
  enable();
  const filter = make("form", {
    class: "fields",
    onsubmit: (event) => {
      event.preventDefault();
      const chosen = STATES[state.value].filters.map((name) => [name, name === "from" || name === "to" ? asIso(inputs[name].value) : inputs[name].value.trim()]);
      go(PATH + query({ state: state.value, ...Object.fromEntries(chosen) }));
    },
  },
  field("State", state), field("Station", inputs.station_id), field("Client", inputs.client), field("Status of the decision", inputs.status), field("Reason", inputs.reason),
  field("From", inputs.from), field("To", inputs.to),
  make("datalist", { id: "reasons" }, REASONS.map((reason) => make("option", { value: reason }))),
  make("div", { class: "row" }, make("button", { class: "main" }, "Filter"), make("a", { href: PATH }, "Show all")));
  const list = make("div", { "aria-live": "polite" }, make("p", { class: "soft loading" }, "…"));
  content.append(make("section", { class: "card" }, make("h2", {}, "Filter"), filter), make("section", { class: "card" }, list));
  const { path, filters, always } = STATES[state.value];
  try {
    const page = await get(path + query({ ...Object.fromEntries(filters.map((name) => [name, values[name]])), ...always, limit: 50, cursor: values.cursor }), { signal: left });
    const [caption, columns, empty] = shape(state.value);
    list.replaceChildren(table(caption, columns, page.items, empty), pager(page, values, PATH));
  } catch (error) {
    if (error.name !== "AbortError") list.replaceChildren(problem(error));
  }
}

// Caption, columns and what is said of an empty list.
function shape(state) {
  const request = ["Request", (item) => make("a", { href: `/dashboard/requests/${item.request_id}`, class: "id" }, item.request_id)];
  const station = ["Station", (item) => make("a", { href: PATH + query({ state, station_id: item.station_id }), class: "id" }, item.station_id)];
  const reason = ["Reason", (item) => code(item.reason || "–"), "reason"];
  if (state === "under_way") {
    return ["Under way, newest first", [
      ["Accepted", (item) => moment(item.created_at)], request, station, ["Client", (item) => item.client || "–", "text"],
      ["Stands at", (item) => item.decision ? "callback under way" : item.status === "QUEUED" ? "waits for a worker" : "the authorizer is asked"],
      ["Decision", (item) => item.decision ? chip(item.decision.status) : "none yet"],
      ["For", (item) => duration(Math.max(0, now() - new Date(item.created_at))), "number"],
    ], "No request that matches is under way."];
  }
  if (state === "given_up") {
    return ["Callbacks given up, newest first; they are sent again, or discarded, as dead letters", [
      ["Given up", (item) => moment(item.failed_at)], request, ["Client", (item) => item.client || "–", "text"], ["Decision", (item) => chip(item.status)],
      ["Attempts", (item) => item.attempts, "number"], ["Last error", (item) => code(outcome(item.last_status_code, item.last_error))],
    ], "No callback that matches was given up."];
  }
  return ["Decisions, newest first", [
    ["Decided", (item) => moment(item.timestamp)], request, station, ["Status", (item) => chip(item.status)], reason,
    ["Took", (item) => duration(item.processing_time_ms), "number"],
  ], "No decision matches."];
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

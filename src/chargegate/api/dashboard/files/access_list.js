import { call, get, post, query } from "./api.js";
import { chip, code, confirmed, field, make, moment, number, say, table } from "./dom.js";
import { asIso, pager, problem, timeInput } from "./requests.js";

const PATH = "/dashboard/access-list";
const MAX_FILE = 1024 * 1024;
const TIMES = { valid_from: "always", valid_until: "for ever" };
const listed = (empty) => (ids) => ids.length ? make("span", { class: "id" }, ids.join(", ")) : empty;
const FIELDS = {
  blocked: (value) => value ? "yes" : "no", valid_from: moment, valid_until: moment, note: (value) => value || "none",
  allowed_stations: listed("all"), denied_stations: listed("none"),
};
const words = (text) => text.split(/[\s,;]+/).filter(Boolean);

export async function show(content, { values, reload, left }) {
  const found = make("div", { "aria-live": "polite" });
  const list = make("div", {}, make("p", { class: "soft loading" }, "…"));
  content.append(make("h1", {}, "Access list"),
    make("p", { class: "soft" }, "Tokens are kept as keyed hashes only. A token that is typed in here is sent in the body of a request, stands in no address, and its field is emptied at once."),
    section("Find a token", search(found), found), section("Add or replace an entry", adding(reload)),
    section("Import a CSV file", ...importing(reload)), section("Entries", list));
  try {
    const page = await get(`/api/v1/acl${query({ limit: 50, cursor: values.cursor })}`, { signal: left });
    list.replaceChildren(entries(page.items, reload), pager(page, values, PATH));
  } catch (error) {
    if (error.name !== "AbortError") list.replaceChildren(problem(error));
  }

  function search(into) {
    const token = tokenInput();
    const stations = make("input", { name: "station_id", autocomplete: "off", spellcheck: "false" });
    return make("form", {
      class: "fields",
      onsubmit: async (event) => {
        event.preventDefault();
        const asked = taken(token);
        const station = stations.value.trim();
        try {
          const entry = await post("/api/v1/acl/search", { driver_token: asked }).catch((error) => { if (error.status === 404) return null; throw error; });
          const verdict = station ? await post("/api/v1/acl/check", { driver_token: asked, station_id: station }) : null;
          into.replaceChildren(
            entry ? entries([entry], reload) : make("p", {}, "This token is not in the access list."),
            verdict ? make("p", {}, "At this station it would be ", chip(verdict.status), verdict.reason ? ` (${verdict.reason})` : "", ".") : "");
        } catch (error) {
          into.replaceChildren(problem(error));
        }
      },
    }, field("Driver token", token), field("Station, to see what would be decided", stations), make("div", {}, make("button", { class: "main" }, "Find")));
  }

  function adding(done) {
    const token = tokenInput();
    const blocked = make("input", { type: "checkbox", name: "blocked" });
    const since = timeInput("valid_from");
    const until = timeInput("valid_until");
    const allowed = make("input", { name: "allowed_stations", autocomplete: "off" });
    const denied = make("input", { name: "denied_stations", autocomplete: "off" });
    const note = make("input", { name: "note", maxlength: 500, autocomplete: "off" });
    const fault = make("div", { class: "wide" });
    // The token of a refused entry, so that a wrong station can be mended; no element has it.
    let kept = "";
    const keep = (value) => { kept = value; token.required = !value; };
    left.addEventListener("abort", () => keep(""));
    return make("form", {
      class: "fields",
      onsubmit: async (event) => {
        event.preventDefault();
        const asked = taken(token) || kept;
        fault.replaceChildren();
        keep("");
        try {
          await call("PUT", "/api/v1/acl", {
            body: {
              driver_token: asked, blocked: blocked.checked, valid_from: asIso(since.value) || null, valid_until: asIso(until.value) || null,
              allowed_stations: words(allowed.value), denied_stations: words(denied.value), note: note.value,
            },
          });
          say("The entry is stored.");
          done();
        } catch (error) {
          if (left.aborted) return;
          if (!error.details?.driver_token) keep(asked);
          fault.replaceChildren(problem(error), kept ? make("p", {}, "The token's field is emptied; leave it empty to try again with the same token.") : "");
        }
      },
    }, field("Driver token", token), field("Valid from", since), field("Valid until", until),
    field("Only at these stations", allowed), field("Not at these stations", denied), field("Note", note),
    make("label", { class: "check" }, blocked, "Blocked"), make("div", {}, make("button", { class: "main" }, "Store")), fault);
  }
}

function section(title, ...children) { return make("section", { class: "card" }, make("h2", {}, title), children); }

function tokenInput() {
  return make("input", { name: "driver_token", autocomplete: "off", autocapitalize: "off", spellcheck: "false", required: true, minlength: 20, maxlength: 80 });
}

// What was typed in, which leaves the page with this.
function taken(input) {
  const value = input.value.trim();
  input.value = "";
  return value;
}

function entries(items, reload) {
  const act = async (work, said) => {
    try { await work(); say(said); reload(); } catch (error) { say(error.message); }
  };
  const short = (entry) => entry.driver_token_hash.slice(0, 16);
  return table("By the hashes of their tokens", [
    ["Token's hash", (entry) => make("span", { class: "id short", title: entry.driver_token_hash }, `${short(entry)}…`)],
    ["State", (entry) => chip(entry.blocked ? "blocked" : "listed")],
    ["Valid", (entry) => entry.valid_from || entry.valid_until ? ["from ", moment(entry.valid_from), " until ", moment(entry.valid_until)] : "always"],
    ["Stations", (entry) => stations(entry)],
    ["Note", (entry) => entry.note || "–", "text"],
    ["Actions", (entry) => make("span", { class: "row" },
      make("button", {
        type: "button", class: "small", "aria-label": `${entry.blocked ? "Unblock" : "Block"} ${short(entry)}`,
        onclick: () => act(() => post(`/api/v1/acl/${entry.driver_token_hash}/blocked`, { blocked: !entry.blocked }), entry.blocked ? "It is let in again." : "It is blocked."),
      }, entry.blocked ? "Unblock" : "Block"),
      make("button", {
        type: "button", class: "small danger", "aria-label": `Remove ${short(entry)}`,
        onclick: async () => {
          if (await confirmed("Remove this entry?", "Its driver will not be allowed anywhere.", "Remove", true)) {
            act(() => call("DELETE", `/api/v1/acl/${entry.driver_token_hash}`), "The entry is gone.");
          }
        },
      }, "Remove"))],
  ], items, "The access list is empty.");
}

function stations({ allowed_stations: allowed, denied_stations: denied }) {
  const parts = [allowed.length ? `only ${allowed.join(", ")}` : "", denied.length ? `not ${denied.join(", ")}` : ""].filter(Boolean);
  return parts.length ? make("span", { class: "id" }, parts.join("; ")) : "all";
}

function importing(reload) {
  const file = make("input", { type: "file", name: "file", accept: ".csv,text/csv", required: true });
  const preview = make("div", { "aria-live": "polite" });
  let turn = 0;
  // What is shown belongs to the file that is chosen, and an answer that comes later than the next choice to none.
  const anew = (...shown) => { turn += 1; preview.replaceChildren(...shown); return turn; };
  const refused = (message) => anew(problem({ message }));
  file.addEventListener("change", () => anew());
  const form = make("form", {
    class: "fields preview",
    onsubmit: async (event) => {
      event.preventDefault();
      const [chosen] = file.files;
      if (chosen.size > MAX_FILE) { refused("The file is larger than 1 MiB; import it by chargegate acl import."); return; }
      const mine = anew();
      try {
        const bytes = await packed(chosen);
        const changes = await post("/api/v1/acl/import", { csv_base64: bytes, store: false });
        if (mine !== turn) return;
        if (changes.fault) { refused(`Nothing can be imported: ${changes.fault}.`); return; }
        const button = make("button", { type: "button", class: "main", onclick: () => { button.disabled = true; store(bytes); } }, "Import this");
        preview.replaceChildren(
          make("p", {}, `This file would add ${number(changes.added)}, change ${number(changes.changed)} and leave ${number(changes.unchanged)} as they are.`),
          table(changes.items.length < changes.added + changes.changed ? `The first ${changes.items.length} changes` : "What would change", [
            ["Token's hash", (item) => make("span", { class: "id short" }, `${item.driver_token_hash.slice(0, 16)}…`)],
            ["Change", (item) => chip(item.change)],
            ["Fields", (item) => item.fields.length ? make("ul", { class: "plain" }, item.fields.map((each) => fieldChange(item, each))) : "everywhere and always"],
          ], changes.items, "Nothing would change."),
          changes.items.length ? button : "");
      } catch (error) {
        if (mine === turn) anew(problem(error));
      }
    },
  }, field("File", file), make("div", {}, make("button", {}, "Show what would change")));
  const hint = make("p", { class: "soft" }, "Columns: driver_token, blocked, valid_from, valid_until, allowed_stations, denied_stations, note. Only the first is required. Up to 1 MiB; larger files are for ", make("code", {}, "chargegate acl import"), ".");

  async function store(bytes) {
    const mine = turn;
    try {
      const changes = await post("/api/v1/acl/import", { csv_base64: bytes, store: true });
      if (changes.fault) throw new Error(`Nothing was imported: ${changes.fault}.`);
      say(`Imported: ${number(changes.added)} added, ${number(changes.changed)} changed.`);
      reload();
    } catch (error) {
      if (mine === turn) anew(problem(error));
      else say(error.message);
    }
  }
  return [hint, form, preview];
}

// The bytes of a file in base64: read as text, those that are no text would become other ones.
function packed(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error("The file cannot be read; it may have changed since it was chosen."));
    reader.readAsDataURL(file);
  });
}

function fieldChange(item, { field: name, old, new: now }) {
  const kind = FIELDS[name] ?? ((value) => value);
  const value = (which) => which === null && name in TIMES ? TIMES[name] : kind(which);
  const change = item.change === "added" ? [value(now)] : [make("del", {}, value(old)), " → ", make("ins", {}, value(now))];
  return make("li", {}, code(name), ": ", change);
}

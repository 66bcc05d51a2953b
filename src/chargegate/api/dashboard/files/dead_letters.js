import { get, post, query } from "./api.js";
import { chip, code, confirmed, field, make, moment, number, say, table } from "./dom.js";
import { asIso, outcome, pager, problem, timeInput } from "./requests.js";

const PATH = "/dashboard/dead-letters";
const AT_ONCE = 4;
const VERBS = {
  replay: { action: "Send again", marked: "Send the marked ones again", all: "Send all that match again", doing: "Sending again", done: "sent again", question: "Send %s again?", details: "The decisions already made are sent to their receivers once more. No new decisions are made." },
  discard: { action: "Discard", marked: "Discard the marked ones", all: "Discard all that match", doing: "Discarding", done: "discarded", question: "Discard %s for good?", details: "Their tokens and URLs are erased, and they can never be sent again. The decisions stay in the audit.", danger: true },
};

export async function show(content, { values, go, reload, left }) {
  const client = make("input", { name: "client", value: values.client, autocomplete: "off", spellcheck: "false" });
  const from = timeInput("from", values.from);
  const to = timeInput("to", values.to);
  const form = make("form", {
    class: "fields",
    onsubmit: (event) => { event.preventDefault(); go(PATH + query({ client: client.value.trim(), from: asIso(from.value), to: asIso(to.value) })); },
  }, field("Client", client), field("Given up from", from), field("To", to),
  make("div", { class: "row" }, make("button", { class: "main" }, "Filter"), make("a", { href: PATH }, "Show all")));
  const bar = make("progress", { max: 1, value: 0, "aria-label": "Progress" });
  const how = make("p", { role: "status" });
  const progress = make("div", { hidden: true }, how, bar);
  const list = make("div", {}, make("p", { class: "soft loading" }, "…"));
  const marked = new Map();
  const buttons = ["replay", "discard"].map((verb) => make("button", { type: "button", class: verb === "discard" ? "danger" : null, disabled: true, onclick: () => some(verb) }, VERBS[verb].marked));
  const all = ["replay", "discard"].map((verb) => make("button", { type: "button", class: verb === "discard" ? "danger" : null, onclick: () => everything(verb) }, VERBS[verb].all));
  const tools = make("div", { class: "row tools" }, make("span", { class: "row" }, buttons), make("span", { class: "row" }, all));
  content.append(make("h1", {}, "Dead letters"), make("p", { class: "soft" }, "Callbacks that were given up. Each can be sent again with the decision already made."),
    make("section", { class: "card" }, make("h2", {}, "Filter"), form), make("section", { class: "card" }, tools, progress, list));
  const filter = { client: values.client, from: values.from, to: values.to };

  try {
    const page = await get(`/api/v1/dead-letters${query({ ...filter, limit: 50, cursor: values.cursor })}`, { signal: left });
    const boxes = page.items.map((item) => make("input", {
      type: "checkbox", "aria-label": `Mark ${item.request_id}`,
      onchange: (event) => { if (event.target.checked) marked.set(item.request_id, item); else marked.delete(item.request_id); count(); },
    }));
    const every = make("input", { type: "checkbox", "aria-label": "Mark all of this page", onchange: () => boxes.forEach((box) => { if (box.checked !== every.checked) box.click(); }) });
    if (page.items.length) tools.prepend(make("label", { class: "check" }, every, "Mark all of this page"));
    all.forEach((button) => { button.disabled = !page.items.length; });
    list.replaceChildren(table("Given up, newest first", [
      ["Mark", (item) => boxes[page.items.indexOf(item)]],
      ["Given up", (item) => moment(item.failed_at)],
      ["Request", (item) => make("a", { href: `/dashboard/requests/${item.request_id}`, class: "id" }, item.request_id)],
      ["Client", (item) => item.client || "–", "text"],
      ["Decision", (item) => chip(item.status)],
      ["Attempts", (item) => number(item.attempts), "number"],
      ["Last error", (item) => code(outcome(item.last_status_code, item.last_error))],
      ["Actions", (item) => make("span", { class: "row" }, ["replay", "discard"].map((verb) => make("button", {
        type: "button", class: verb === "discard" ? "small danger" : "small", "aria-label": `${VERBS[verb].action}: ${item.request_id}`, onclick: () => run(verb, [item]),
      }, VERBS[verb].action)))],
    ], page.items, "There are no dead letters here."), pager(page, values, PATH));
  } catch (error) {
    if (error.name !== "AbortError") list.replaceChildren(problem(error));
  }

  function count() {
    buttons.forEach((button) => { button.disabled = !marked.size; });
  }

  function some(verb) { run(verb, [...marked.values()]); }

  const counted = (how_many) => how_many === 1 ? "1 dead letter" : `${number(how_many)} dead letters`;

  async function sure(verb, what) {
    const { question, details, action, danger } = VERBS[verb];
    return confirmed(question.replace("%s", what), details, action, danger);
  }

  async function run(verb, items) {
    if (!await sure(verb, counted(items.length))) return;
    begin();
    let ended = 0;
    let failed = 0;
    const rest = [...items];
    const one = async () => {
      for (let item = rest.shift(); item && !left.aborted; item = rest.shift()) {
        try {
          await post(`/api/v1/dead-letters/${item.request_id}/${verb}`);
        } catch (error) {
          if (error.status !== 404) failed += 1;
        }
        ended += 1;
        tell(verb, ended - failed, ended / items.length);
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, one));
    finish(verb, ended - failed, failed);
  }

  // A page after another, so that the progress can be seen, and so that it can be left.
  async function everything(verb) {
    const named = filter.client || filter.from || filter.to ? "all dead letters that match the filter" : "all dead letters";
    if (!await sure(verb, named)) return;
    begin();
    bar.removeAttribute("value");
    let ended = 0;
    let cursor = "";
    let until = null;
    const at = (item) => new Date(item.failed_at).getTime();
    const iso = (ms) => new Date(ms).toISOString();
    try {
      do {
        const page = await get(`/api/v1/dead-letters${query({ ...filter, limit: 200, cursor })}`, { signal: left });
        if (!page.items.length) break;
        const oldest = at(page.items.at(-1));
        until ??= at(page.items[0]) + 1;
        // Some of a millisecond may stand on the next page: the ranges touch, so that each is sent and counted once.
        const since = page.next_cursor && oldest + 1 < until ? oldest + 1 : oldest;
        if (since < until) {
          const answer = await post(`/api/v1/dead-letters/${verb}${query({ client: filter.client, from: iso(since), to: iso(until) })}`, {}, { signal: left });
          ended += answer.replayed ?? answer.discarded;
          until = since;
        }
        tell(verb, ended, null);
        cursor = page.next_cursor;
      } while (cursor);
      finish(verb, ended, 0);
    } catch (error) {
      if (error.name !== "AbortError") { say(`${error.message} ${counted(ended)} ${VERBS[verb].done} before.`); reload(); }
    }
  }

  function begin() {
    progress.hidden = false;
    for (const button of [...buttons, ...all]) button.disabled = true;
  }

  function tell(verb, ended, share) {
    how.textContent = `${VERBS[verb].doing}: ${number(ended)}`;
    if (share !== null) bar.value = share;
  }

  function finish(verb, ended, failed) {
    say(`${counted(ended)} ${VERBS[verb].done}${failed ? `, ${number(failed)} failed` : ""}.`);
    reload();
  }
}

// Elements, made without a line of HTML: whatever strangers wrote goes in as text.

export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function drawn(tag, properties = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(properties)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

let forget = 0;

// Says something to everybody, and to those who do not see it.
export function say(text) {
  const said = document.getElementById("said");
  said.textContent = text;
  clearTimeout(forget);
  forget = setTimeout(() => { said.textContent = ""; }, 8000);
}

export function number(value, digits = 0) {
  if (value === null || value === undefined) return "–";
  return value.toLocaleString("en", { maximumFractionDigits: digits });
}

export function duration(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60000) return `${(ms / 1000).toFixed(ms < 10000 ? 1 : 0)} s`;
  if (ms < 3600000) return `${Math.round(ms / 60000)} min`;
  return `${(ms / 3600000).toFixed(1)} h`;
}

const two = (value) => String(value).padStart(2, "0");

export function day(date) { return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`; }

export function clock(date, exact = false) {
  const minutes = `${two(date.getHours())}:${two(date.getMinutes())}`;
  return exact ? `${minutes}:${two(date.getSeconds())}.${String(date.getMilliseconds()).padStart(3, "0")}` : minutes;
}

// A time of JSON, in the reader's own zone; the exact one in UTC is behind it.
export function moment(value) {
  if (value === null || value === undefined) return "–";
  const date = new Date(value);
  return make("time", { datetime: date.toISOString(), title: date.toISOString() }, `${day(date)} ${clock(date, true)}`);
}

const KINDS = {
  allowed: "good", not_allowed: "plain", unknown: "warn", invalid: "bad",
  COMPLETED: "good", FAILED: "bad", TIMEOUT: "warn", QUEUED: "plain", PROCESSING: "plain",
  UP: "good", DEGRADED: "warn", DOWN: "bad", closed: "good", half_open: "warn", open: "bad",
  added: "good", changed: "warn", blocked: "bad",
  critical: "bad", high: "bad", warning: "warn", medium: "warn", low: "plain", info: "plain",
};

export function chip(text) {
  return make("span", { class: `chip ${KINDS[text] ?? KINDS[String(text).toLowerCase()] ?? "plain"}` }, String(text));
}

// A code such as driver_not_in_acl, which may go on in another line after each of its words.
export function code(text) {
  return make("span", { class: "code" }, String(text).split(/(?<=_)/).map((word, at) => at ? [make("wbr"), word] : word));
}

// Columns: [heading, what makes the cell, options]. On a narrow screen each row becomes a card.
export function table(caption, columns, items, empty) {
  if (!items.length) return make("p", { class: "soft" }, empty);
  const head = columns.map(([title, , kind]) => make("th", { scope: "col", class: kind }, title));
  const rows = items.map((item) => make("tr", {}, columns.map(([title, cell, kind]) =>
    make("td", { "data-label": typeof title === "string" ? title : "", class: kind }, make("span", {}, cell(item))))));
  return make("table", { class: "cards" }, make("caption", {}, caption),
    make("thead", {}, make("tr", {}, head)), make("tbody", {}, rows));
}

export function field(label, control, wide = false) {
  control.id ||= `field-${Math.random().toString(36).slice(2)}`;
  return make("div", { class: wide ? "wide" : null }, make("label", { for: control.id }, label), control);
}

export function copyButton(text, what) {
  return make("button", {
    type: "button", class: "small", "aria-label": `Copy ${what}`,
    onclick: () => copy(text, what),
  }, "Copy");
}

export async function copy(text, what) {
  let copied = true;
  try { await navigator.clipboard.writeText(text); } catch { copied = copiedAsMarked(text); }
  say(copied ? `Copied ${what}.` : "The browser does not allow copying here.");
}

// Over plain HTTP a browser has no clipboard for pages, but copies what is marked.
function copiedAsMarked(text) {
  const before = document.activeElement;
  const field = make("textarea", { class: "unseen", readonly: true, "aria-hidden": "true", tabindex: "-1" });
  field.value = text;
  document.body.append(field);
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  before?.focus({ preventScroll: true });
  return copied;
}

// Shows children in place of those before. What is the same element stays, so that the keyboard and a marked text stay
// too; its listeners would stay as well, so that this is for elements without any.
export function renew(holder, ...children) { follow(holder, make("div", {}, ...children)); }

function follow(old, fresh) {
  const were = [...old.childNodes];
  const are = [...fresh.childNodes];
  are.forEach((node, at) => {
    const was = were[at];
    if (!was) old.append(node);
    else if (was.nodeName !== node.nodeName) was.replaceWith(node);
    else if (!(node instanceof Element)) { if (was.data !== node.data) was.data = node.data; } else {
      for (const { name } of [...was.attributes]) if (!node.hasAttribute(name)) was.removeAttribute(name);
      for (const { name, value } of node.attributes) if (was.getAttribute(name) !== value) was.setAttribute(name, value);
      follow(was, node);
    }
  });
  were.slice(are.length).forEach((node) => node.remove());
}

const controls = (within, name) => [...within.querySelectorAll("a, button, input, select, summary")].filter((each) => called(each) === name);

// What has the keyboard within an element, so that it can be found again once that is made anew; null for nothing.
export function held(within) {
  const active = document.activeElement;
  if (within === active || !within.contains(active)) return null;
  const name = called(active);
  return { name, at: controls(within, name).indexOf(active) };
}

// Gives it back the keyboard; false where it is not there any more.
export function hold(within, keyboard) {
  const found = keyboard && controls(within, keyboard.name)[keyboard.at];
  if (found) found.focus({ preventScroll: true });
  return Boolean(found);
}

function called(control) {
  return [control.tagName, control.name, control.type === "radio" ? control.value : "", control.getAttribute("aria-label") ?? control.textContent].join(" ");
}

// Asks before something is done; true if it shall be.
export function confirmed(question, details, action, danger = false) {
  return new Promise((resolve) => {
    const dialog = make("dialog", { "aria-labelledby": "question" },
      make("h2", { id: "question" }, question), make("p", {}, details),
      make("div", { class: "row" },
        make("button", { type: "button", onclick: () => dialog.close() }, "Cancel"),
        make("button", { type: "button", class: danger ? "danger" : "main", onclick: () => dialog.close("yes") }, action)));
    dialog.addEventListener("close", () => { dialog.remove(); resolve(dialog.returnValue === "yes"); });
    document.body.append(dialog);
    dialog.showModal();
  });
}

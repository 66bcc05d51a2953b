// Which page is shown, and to whom.
import { show as showAccessList } from "./access_list.js";
import { show as showAnomalies } from "./anomalies.js";
import { call, get, Failed } from "./api.js";
import { show as showDeadLetters } from "./dead_letters.js";
import { held, hold, make, say } from "./dom.js";
import { show as showOverview } from "./overview.js";
import { show as showRequest } from "./request.js";
import { show as showRequests } from "./requests.js";
import { signIn } from "./sign_in.js";
import { show as showStations } from "./stations.js";

// All are loaded at once: a page that stays open over an update never mixes the files of two releases.
const PAGES = [
  { path: "/dashboard", title: "Overview", fill: showOverview, role: "admin" },
  { path: "/dashboard/requests", title: "Requests", fill: showRequests, role: "client" },
  { path: "/dashboard/stations", title: "Stations", fill: showStations, role: "admin" },
  { path: "/dashboard/dead-letters", title: "Dead letters", fill: showDeadLetters, role: "admin" },
  { path: "/dashboard/access-list", title: "Access list", fill: showAccessList, role: "admin" },
  { path: "/dashboard/anomalies", title: "Anomalies", fill: showAnomalies, role: "admin" },
];
const REQUEST = /^\/dashboard\/requests\/([0-9A-Fa-f-]{36})$/;
const SESSION_LOOK_MS = 5000;
const main = document.getElementById("main");

let visitor = null;
let leaving = () => {};
let turn = 0;
let shown = "";

async function show({ focus = false } = {}) {
  const mine = ++turn;
  shown = location.pathname + location.search;
  leaving();
  leaving = () => {};
  document.querySelector("dialog")?.close();
  if (visitor === null) {
    main.replaceChildren(); // nothing of a session that is over
    try {
      visitor = await get("/api/v1/dashboard-session", { background: true });
    } catch (error) {
      if (mine === turn) failed(error);
      return;
    }
  }
  if (mine !== turn) return;
  const path = location.pathname.replace(/\/$/, "");
  const asked = REQUEST.exec(path);
  const page = PAGES.find((each) => each.path === path) ?? (asked ? PAGES[1] : null);
  frame(page);
  if (page === null) {
    document.title = "Not found · chargegate";
    main.replaceChildren(make("h1", {}, "Not found"), make("p", {}, "There is no page at this address."), make("p", {}, make("a", { href: "/dashboard" }, "To the overview")));
    return;
  }
  if (!visitor.signed_in) {
    document.title = "Sign in · chargegate";
    signIn(main, (signedIn) => { visitor = signedIn; show({ focus: true }); });
    return;
  }
  if (page.role === "admin" && visitor.role !== "admin") {
    if (path === "/dashboard") { go("/dashboard/requests", true); return; }
    document.title = `${page.title} · chargegate`;
    main.replaceChildren(make("h1", {}, page.title), make("p", {}, "This page needs an admin's access key."));
    return;
  }
  document.title = `${asked ? "Request" : page.title} · chargegate`;
  const left = new AbortController();
  leaving = () => left.abort();
  const content = make("div");
  const keyboard = held(main);
  main.replaceChildren(content);
  (asked ? showRequest : page.fill)(content, {
    visitor, go, rename, reload: () => { if (!left.signal.aborted) show(); }, left: left.signal, id: asked?.[1].toLowerCase(),
    values: Object.fromEntries(new URLSearchParams(location.search)),
    every: (ms, work) => every(ms, work, left.signal),
  });
  if (visitor.keys_required) every(SESSION_LOOK_MS, () => lookAtSession(left.signal), left.signal);
  if (focus) scrollTo(0, 0);
  if (focus || (keyboard && !hold(content, keyboard))) main.focus({ preventScroll: true });
}

function failed(error) {
  main.replaceChildren(make("h1", {}, "chargegate"), make("p", { class: "fault", role: "alert" }, error.message),
    make("button", { type: "button", onclick: () => show() }, "Try again"));
}

// A page that asks for nothing by itself must not stay when its session is over.
async function lookAtSession(left) {
  const now = await get("/api/v1/dashboard-session", { background: true, signal: left });
  if (!now.signed_in) dispatchEvent(new Event("session-ended"));
  else if (now.name !== visitor.name || now.role !== visitor.role) { visitor = now; show(); } // by another window
}

// Repeats work while the page is shown and looked at; it never overlaps itself. The work is also done at once.
function every(ms, work, left) {
  let timer = 0;
  let running = false;
  const step = async () => {
    clearTimeout(timer);
    if (left.aborted || running) return;
    if (!document.hidden) {
      running = true;
      try {
        await work();
      } catch (error) {
        if (!(error instanceof Failed) && error.name !== "AbortError") throw error;
      } finally {
        running = false;
        if (!left.aborted) timer = setTimeout(step, ms);
      }
    } else if (!left.aborted) timer = setTimeout(step, ms);
  };
  document.addEventListener("visibilitychange", () => { if (!document.hidden) step(); }, { signal: left });
  left.addEventListener("abort", () => clearTimeout(timer));
  step();
}

function go(address, replace = false) {
  history[replace ? "replaceState" : "pushState"](null, "", address);
  show({ focus: !replace });
}

// The page goes on under another address.
function rename(address) {
  history.replaceState(null, "", address);
  shown = location.pathname + location.search;
}

function frame(current) {
  const links = PAGES.filter((page) => visitor.signed_in && (page.role === "client" || visitor.role === "admin"));
  document.getElementById("pages").replaceChildren(make("ul", {}, links.map((page) => make("li", {},
    make("a", { href: page.path, "aria-current": page === current ? "page" : null }, page.title)))));
  document.getElementById("visitor").replaceChildren(...(visitor.signed_in && visitor.keys_required ? [
    make("span", {}, `${visitor.name} (${visitor.role})`), make("button", { type: "button", class: "small", onclick: signOut }, "Sign out"),
  ] : []));
}

async function signOut() {
  try {
    await call("DELETE", "/api/v1/dashboard-session");
  } catch (error) {
    say(error.message);
    return;
  }
  visitor = null;
  say("You are signed out.");
  show({ focus: true });
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href]");
  if (!link || event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  const url = new URL(link.href);
  if (link.target || url.origin !== location.origin || !url.pathname.startsWith("/dashboard") || url.hash) return;
  event.preventDefault();
  go(url.pathname + url.search);
});
addEventListener("popstate", () => { if (location.pathname + location.search !== shown) show({ focus: true }); });
addEventListener("session-ended", () => { if (visitor?.signed_in) { visitor = null; say("Your session is over."); show({ focus: true }); } });

show();

// The same routes as everybody has, called with the session's cookie.

export class Failed extends Error {
  constructor(status, answer, message = status ? `The service answered ${status}.` : "The service does not answer.") {
    super(answer?.message ?? message);
    this.status = status;
    this.details = answer?.details ?? {};
  }
}

const SAME_MS = 2000; // a header has whole seconds, and takes its way
let ahead = 0;

// The service's time in ms, whatever the clock of this machine says.
export function now() { return Date.now() - ahead; }

function compareClocks(header) {
  const off = Date.now() - Date.parse(header ?? "");
  if (!Number.isNaN(off)) ahead = Math.abs(off) > SAME_MS ? off : 0;
}

// In the background: the page asks by itself, which does not keep a session alive.
export async function call(method, path, { body, background = false, signal } = {}) {
  const headers = { accept: "application/json" };
  if (background) headers["x-background"] = "1";
  if (method === "POST" || method === "PUT") headers["content-type"] = "application/json";
  let response;
  let text;
  try {
    response = await fetch(path, {
      method, headers, signal, credentials: "same-origin", redirect: "error", cache: "no-store",
      body: method === "POST" || method === "PUT" ? JSON.stringify(body ?? {}) : undefined,
    });
    compareClocks(response.headers.get("date"));
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failed(0, null);
  }
  let answer = null;
  try { answer = text ? JSON.parse(text) : null; } catch { /* it is no JSON: a proxy answered */ }
  if (response.ok && (answer !== null || !text)) return answer;
  if (response.ok) throw new Failed(response.status, null, "What answers is not this service.");
  if (response.status === 401 && !path.endsWith("/dashboard-session")) window.dispatchEvent(new Event("session-ended"));
  throw new Failed(response.status, answer);
}

export const get = (path, options) => call("GET", path, options);
export const post = (path, body, options) => call("POST", path, { ...options, body });

export function query(values) {
  const pairs = Object.entries(values).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return pairs.length ? `?${new URLSearchParams(pairs)}` : "";
}

import { get, post } from "./api.js";
import { chip, confirmed, copy, copyButton, duration, held, hold, make, moment, say } from "./dom.js";
import { outcome, problem } from "./requests.js";

const KEPT = 20;
const ENDED = ["COMPLETED", "FAILED", "TIMEOUT"];

export function show(content, { id, visitor, every, left }) {
  const body = make("div", {}, make("p", { class: "soft loading" }, "…"));
  content.append(make("h1", {}, "Request"), body);
  let told = "";
  let ended = false;
  let waitFor = 0;
  every(1000, async () => {
    if (ended && Date.now() > waitFor) return;
    try {
      const request = await get(`/api/v1/charging-session/${id}`, { background: told !== "", signal: left });
      ended = ENDED.includes(request.status);
      const now = JSON.stringify(request);
      if (now !== told) {
        told = now;
        const keyboard = held(body);
        body.replaceChildren(...drawn(request));
        hold(body, keyboard);
      }
    } catch (error) {
      if (error.name === "AbortError") throw error;
      ended = error.status === 404;
      told = "-";
      body.replaceChildren(error.status === 404 ? make("p", {}, "There is no request with this id, or it is not yours.") : problem(error));
    }
  });

  function drawn(request) {
    const facts = [["Request", withCopy(request.request_id, "the request id")], ["Station", withCopy(request.station_id, "the station id")],
      ["Client", request.client || null], ["Stands at", chip(request.status)],
      ["Decision", request.decision ? [chip(request.decision.status), request.decision.reason ? ` ${request.decision.reason}` : ""] : "none yet"]];
    return [
      make("section", { class: "card" }, make("dl", { class: "facts" },
        facts.filter(([, value]) => value !== null).map(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]))),
      make("section", { class: "card" }, make("h2", {}, "Its way"), timeline(request)),
      make("p", { class: "row" }, make("button", { type: "button", onclick: () => copyAll(request) }, "Copy as JSON"),
        make("button", { type: "button", onclick: () => copyLink() }, "Copy the link"),
        request.status === "FAILED" && visitor.role === "admin" ? make("button", { type: "button", class: "main", onclick: () => replay(request) }, "Send the callback again") : null),
    ];
  }

  async function replay(request) {
    const sure = await confirmed("Send the callback again?", `The decision already made (${request.decision?.status ?? "none"}) is sent to the receiver once more. No new decision is made.`, "Send it again");
    if (!sure) return;
    try {
      await post(`/api/v1/dead-letters/${request.request_id}/replay`);
      say("It is back in the queue.");
      ended = false;
      waitFor = Date.now() + 30000;
    } catch (error) {
      say(error.status === 404 ? "It can be sent no more: it was discarded, or is being sent." : error.message);
    }
  }
}

function withCopy(text, what) {
  return make("span", { class: "row" }, make("span", { class: "id" }, text), copyButton(text, what));
}

const copyAll = (request) => copy(JSON.stringify(request, null, 2), "the request");
const copyLink = () => copy(location.href, "the link");

function timeline(request) {
  const { decision, callback } = request;
  const steps = [step("good", "Accepted", request.created_at, "The client got its 202.")];
  if (request.status === "QUEUED") steps.push(step("", "Waits for a worker", null, ""));
  if (request.status === "PROCESSING" && !decision) steps.push(step("", "Taken by a worker", null, "The authorizer is being asked."));
  if (decision) {
    const kind = { allowed: "good", not_allowed: "good", unknown: "warn", invalid: "bad" }[decision.status];
    const took = decision.processing_time_ms;
    const takenAt = new Date(decision.timestamp).getTime() - took;
    const waited = Math.max(0, takenAt - new Date(request.created_at).getTime());
    steps.push(step("good", "Taken by a worker", takenAt, `after ${duration(waited)} in the queue`));
    const why = decision.reason || "no reason needed";
    steps.push(step(kind, `Decided: ${decision.status}`, decision.timestamp, `${why}; the authorizer took ${duration(took)}`));
  }
  const attempts = callback?.history ?? [];
  const unlisted = (callback?.attempts ?? 0) - attempts.length;
  if (unlisted > 0 && !attempts.length) {
    steps.push(step(callback.delivered_at ? "good" : "bad", `${unlisted} ${unlisted === 1 ? "attempt" : "attempts"}`, null,
      `the last one: ${outcome(callback.last_status_code, callback.last_error)}`));
  }
  const again = (replays) => replays.forEach((at) => steps.push(step("", "Sent again by an operator", at, "")));
  let replays = callback?.replays ?? [];
  // An earlier release kept no replays. The history is of all attempts, and the count is of those since the last replay.
  const replayedAt = !replays.length && attempts.length > callback?.attempts ? attempts.length - callback.attempts : -1;
  const all = attempts.length < KEPT;
  if (!all) steps.push(step("", "Perhaps earlier attempts", null, `The last ${KEPT} are kept.`));
  attempts.forEach((attempt, at) => {
    const before = replays.filter((replay) => replay <= attempt.at);
    if (before.length || at === replayedAt) {
      if (at) steps.push(endOf(attempts[at - 1]));
      again(before.length ? before : [null]);
      replays = replays.slice(before.length);
    }
    const good = attempt.status_code >= 200 && attempt.status_code < 300;
    steps.push(step(good ? "good" : "bad", `Attempt${all ? ` ${at + 1}` : ""}: ${outcome(attempt.status_code, attempt.error)}`, attempt.at, `took ${duration(attempt.duration_ms)}`));
  });
  if (replays.length && attempts.length) steps.push(endOf(attempts[attempts.length - 1]));
  again(replays);
  if (replayedAt === attempts.length) again([null]);
  if (callback?.delivered_at) steps.push(step("good", "Delivered", callback.delivered_at, `${duration(new Date(callback.delivered_at) - new Date(request.created_at))} after it was accepted`));
  else if (request.status === "FAILED") steps.push(step("bad", "Given up", request.processed_at, `${callback ? `${outcome(callback.last_status_code, callback.last_error)}. ` : ""}It is a dead letter until it is sent again or discarded.`));
  else if (decision) steps.push(step("", "The callback is under way", null, ""));
  return make("ol", { class: "timeline" }, steps);
}

function endOf(attempt) {
  const ended = new Date(attempt.at).getTime() + attempt.duration_ms;
  return attempt.error === null ? step("good", "Delivered", ended, "") : step("bad", "Given up", ended, outcome(attempt.status_code, attempt.error));
}

function step(kind, title, at, more) {
  return make("li", { class: kind }, make("strong", {}, title), make("span", { class: "soft" }, at ? moment(at) : "", at && more ? " · " : "", more));
}

// The page: signs in, keeps one stream for its user and one for the open thread, and applies
// every event by the id of what it speaks of, so that seeing one twice changes nothing.

import { Breaking } from "./breaking.js";
import { Health } from "./health.js";
import { LiveStream } from "./live.js";
import { Outbox } from "./outbox.js";
import { Strip } from "./strip.js";
import { $, element, messageItem, runSummary, sentItem, showError, stepItem } from "./view.js";

const state = { me: null, threads: new Map(), open: null };
let mine = null; // the stream of this user
let here = null; // the stream of the open thread

// --- talking to the server

async function call(method, path, body, more = {}) {
  const headers = { Accept: "application/json", ...more };
  if (state.me) headers.Authorization = `Bearer ${state.me.token}`;
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  } catch {
    throw new Error("The server cannot be reached. Try again in a moment.");
  }
  if (response.status === 401 && state.me && path !== "/api/login") leave();
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) {
    const problem = { status: response.status, ...answer };
    throw Object.assign(new Error(answer.detail || `The server said ${response.status}.`), { problem });
  }
  return answer;
}

const refresh = () => call("POST", "/api/session");

// --- what this user does, and what becomes of it

const health = new Health(() => call("GET", "/realtime/health"));
const strip = new Strip(() => call("GET", "/api/operations"));
const breaking = new Breaking((method, body) => call(method, "/api/break", body));
const outbox = new Outbox({
  post: (entry) => call("POST", `/api/threads/${entry.thread}/messages`, { text: entry.text },
    { "Idempotency-Key": entry.key }),
  operations: () => call("GET", "/api/operations"),
  operation: (id) => call("GET", `/api/operations/${encodeURIComponent(id)}`),
  draw: drawSent,
  erase: (entry) => { sentBox(entry)?.remove(); drawEmpty(); },
  settled: () => { strip.refresh(); breaking.used(); },
});

/** An event of either stream; the one on both is told once, by operation and attempt. */
function track(frame) {
  if (frame.actor !== state.me.user_id) return;
  const { data } = frame;
  switch (frame.type) {
    case "transaction_rolled_back":
      strip.tell(data.operation_id, data.failed_operation, "rolled_back", {
        attempt: data.attempt, user_message: data.user_message,
        steps_taken_back: runByOperation(data.operation_id)?.steps_taken_back ?? 0 });
      if (data.failed_operation === "message") outbox.rolledBack(data);
      breaking.used();
      break;
    case "message.created":
      outbox.created(data, frame.operation);
      strip.tell(frame.operation, "message", "committed");
      break;
    case "agent_started": strip.tell(frame.operation, "answer", "open"); break;
    case "agent_completed": strip.tell(frame.operation, "answer", "committed"); breaking.used(); break;
    case "agent_failed": strip.refresh(); break;
  }
}

// --- signing in: the token is this tab's, so that two tabs can be two people

function keep(me) {
  state.me = me;
  sessionStorage.setItem("commitcast-demo", JSON.stringify(me));
}

async function signOut() {
  // a server that is away forgets the token when it expires
  await call("POST", "/api/logout").catch(() => {});
  leave();
}

function leave() {
  sessionStorage.removeItem("commitcast-demo");
  outbox.forget();
  mine?.close();
  here?.close();
  location.replace("/");
}

async function enter() {
  $("sign-in").hidden = true;
  $("chat").hidden = false;
  $("me").textContent = state.me.name;
  health.start();
  mine = new LiveStream(`user:${state.me.user_id}`, state.me.user_id, {
    refresh,
    reload: async () => {
      state.threads = new Map((await call("GET", "/api/threads")).map((one) => [one.id, one]));
      drawThreads();
      const wanted = location.hash.slice(1);
      if (!state.open) openThread(state.threads.has(wanted) ? wanted : state.threads.keys().next().value);
    },
    event: (frame) => {
      track(frame);
      if (frame.type !== "thread.created") return;
      state.threads = new Map([[frame.data.id, frame.data], ...state.threads]);
      drawThreads();
      if (!state.open) openThread(frame.data.id);
    },
    state: (word) => {
      if (!state.open) showConnection(word);
      if (word === "reconnecting") return;
      outbox.settle();
      strip.refresh();
      breaking.refresh();
    },
  });
  const examples = await call("GET", "/api/examples").catch(() => []);
  $("examples").replaceChildren(...examples.map((text) => element("button", {
    type: "button", textContent: text, onclick: () => { $("text").value = text; $("text").focus(); },
  })));
}

// --- threads

function drawThreads() {
  $("threads").replaceChildren(...[...state.threads.values()].map((thread) => {
    const others = thread.members.filter((one) => one.id !== state.me.user_id).map((one) => one.name);
    const button = element("button", { type: "button", onclick: () => openThread(thread.id) },
      element("span", { textContent: thread.title }),
      element("span", { className: "quiet small", textContent: others.join(", ") || "only you" }));
    button.setAttribute("aria-current", String(thread.id === state.open?.id));
    return element("li", {}, button);
  }));
  drawEmpty();
}

function openThread(id) {
  here?.close();
  here = null;
  const thread = state.threads.get(id);
  state.open = thread ? { ...thread, messages: new Map(), runs: new Map(), ready: false } : null;
  history.replaceState(null, "", thread ? `#${id}` : "#");
  $("chat").classList.remove("menu-open");
  $("title").textContent = thread?.title ?? "";
  $("members").textContent = thread?.members.map((one) => one.name).concat("agent").join(", ") ?? "";
  $("composer").hidden = !thread;
  $("messages").replaceChildren();
  $("outbox").replaceChildren();
  $("events").replaceChildren();
  drawThreads();
  if (!thread) return;
  showConnection("connecting");
  const open = state.open;
  outbox.of(id).forEach(drawSent);
  here = new LiveStream(`thread:${id}`, state.me.user_id, {
    refresh,
    reload: () => loadHistory(open),
    event: (frame) => { apply(open, frame); track(frame); drawEvent(frame); },
    state: showConnection,
  });
}

async function loadHistory(open) {
  const [messages, runs] = await Promise.all([
    call("GET", `/api/threads/${open.id}/messages`), call("GET", `/api/threads/${open.id}/runs`)]);
  if (open !== state.open) return;
  open.messages = new Map(messages.map((one) => [one.id, one]));
  open.runs = new Map(runs.map((one) => [one.run_id, one]));
  open.ready = true;
  $("messages").replaceChildren();
  messages.forEach((one) => drawMessage(open, one));
  runs.forEach((one) => drawRun(open, one));
  drawEmpty();
  toEnd(true);
}

// --- events

const RANK = { queued: 0, running: 1, completed: 2, failed: 2 };

function apply(open, frame) {
  const data = frame.data;
  if (frame.type === "message.created") {
    if (!open.messages.has(data.id)) {
      open.messages.set(data.id, data);
      drawMessage(open, data);
      if (data.author_id !== null) runOf(open, data);
      drawEmpty();
    }
  } else if (frame.type.startsWith("agent_") || frame.type.startsWith("tool_")) {
    const run = runOf(open, data);
    run.operation_id = frame.operation;
    if (data.step && run.state !== "failed") applyStep(run, data);
    if (data.state && RANK[data.state] > RANK[run.state]) run.state = data.state;
    if (data.error) run.error = data.error;
    if (run.state === "failed") takeBack(run);
    drawRun(open, run);
  } else if (frame.type === "transaction_rolled_back" && runByOperation(data.operation_id)) {
    const run = runByOperation(data.operation_id);
    run.state = "failed";
    run.error ??= data.user_message; // what says why comes with the run's own end
    takeBack(run);
    drawRun(open, run);
  }
  toEnd(false);
}

const runByOperation = (operation) =>
  [...(state.open?.runs.values() ?? [])].find((run) => run.operation_id === operation);

function takeBack(run) {
  run.steps_taken_back = Math.max(run.steps_taken_back ?? 0, run.steps.length);
  run.steps = [];
}

function runOf(open, data) {
  if (!open.runs.has(data.run_id)) {
    open.runs.set(data.run_id, {
      run_id: data.run_id, message_id: data.message_id, state: "queued", steps: [], error: null });
    drawRun(open, open.runs.get(data.run_id));
  }
  return open.runs.get(data.run_id);
}

function applyStep(run, data) {
  const known = run.steps.find((step) => step.step === data.step);
  const step = {
    step: data.step, kind: data.kind, text: data.text, tool: data.tool,
    arguments: data.arguments, outcome: data.outcome };
  if (!known) run.steps = [...run.steps, step].sort((a, b) => a.step - b.step);
  else if (step.outcome || step.text) Object.assign(known, step); // never back to an earlier state
}

// --- drawing

function drawMessage(open, message) {
  if (open !== state.open) return;
  const item = messageItem(message, state.me.user_id);
  const after = [...$("messages").querySelectorAll(".message")].find(
    (other) => Number(other.dataset.number) > message.number);
  if (after) after.before(item);
  else $("messages").append(item);
}

function drawRun(open, run) {
  if (open !== state.open) return;
  let box = document.querySelector(`.run[data-id="${CSS.escape(run.run_id)}"]`);
  if (!box) {
    const question = document.querySelector(`.message[data-id="${CSS.escape(run.message_id ?? "")}"]`);
    if (!question) return;
    box = element("details", { className: "run", open: RANK[run.state] < 2 });
    box.dataset.id = run.run_id;
    box.append(element("summary", {}, element("span", { className: "dot" }), element("span", { className: "what" })),
      element("ol"));
    question.after(element("li", {}, box));
  }
  if (box.dataset.state && RANK[box.dataset.state] < 2 && RANK[run.state] === 2) box.open = false;
  box.dataset.state = run.state;
  box.querySelector(".what").textContent = runSummary(run);
  box.querySelector("ol").replaceChildren(...run.steps.map(stepItem).filter(Boolean));
  if (run.state === "failed" && !box.querySelector(".again")) {
    box.open = true;
    box.append(element("button", {
      className: "again", type: "button", textContent: "Ask again",
      onclick: () => outbox.send(open.id, open.messages.get(run.message_id)?.text ?? ""),
    }));
  }
}

const sentBox = (entry) => document.querySelector(`.sent[data-key="${CSS.escape(entry.key)}"]`);

function drawSent(entry) {
  if (entry.thread !== state.open?.id) return;
  const item = sentItem(entry, state.me.name, {
    retry: () => outbox.retry(entry.key), discard: () => outbox.discard(entry.key) });
  const before = sentBox(entry);
  if (before) before.replaceWith(item);
  else $("outbox").append(item);
  drawEmpty();
  toEnd(true);
}

function drawEvent(frame) {
  const line = element("li", {}, element("b", { textContent: frame.offset }), element("span", { textContent: frame.type }));
  line.dataset.type = frame.type;
  line.title = `${frame.time}\n${frame.id}`;
  $("events").append(line);
  while ($("events").children.length > 200) $("events").firstChild.remove();
}

function drawEmpty() {
  const nothing = !state.open
    || (state.open.ready && state.open.messages.size === 0 && $("outbox").childElementCount === 0);
  $("empty").hidden = !nothing;
  $("empty").textContent = state.open
    ? "Nothing here yet. Ask the agent something, or pick a question below."
    : "Make a thread to begin: give it a title and the names of who should be in it.";
}

function showConnection(word) {
  $("connection").dataset.state = word;
  $("connection").textContent = word;
}

let atEnd = true;
$("log").addEventListener("scroll", () => {
  atEnd = $("log").scrollHeight - $("log").scrollTop - $("log").clientHeight < 80;
});
function toEnd(always) {
  if (always || atEnd) $("log").scrollTop = $("log").scrollHeight;
}

// --- what people do

$("composer").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  const text = $("text").value.trim();
  if (!text || !state.open) return;
  outbox.send(state.open.id, text);
  $("text").value = "";
  $("text").focus();
});

$("text").addEventListener("keydown", (key) => {
  if (key.key !== "Enter" || key.shiftKey || key.isComposing) return;
  key.preventDefault();
  $("composer").requestSubmit();
});

$("sign-in").querySelector("form").addEventListener("submit", async (submitted) => {
  submitted.preventDefault();
  showError($("sign-in"), "");
  try {
    keep(await call("POST", "/api/login", { name: $("name").value }));
    await enter();
  } catch (error) {
    showError($("sign-in"), error.message);
  }
});

$("make-thread").querySelector("form").addEventListener("submit", async (submitted) => {
  submitted.preventDefault();
  showError($("make-thread"), "");
  const members = $("new-members").value.split(",").map((name) => name.trim()).filter(Boolean);
  try {
    const made = await call("POST", "/api/threads", { title: $("new-title").value, members });
    $("make-thread").close();
    submitted.target.reset();
    if (!state.threads.has(made.id)) {
      state.threads = new Map((await call("GET", "/api/threads")).map((one) => [one.id, one]));
    }
    openThread(made.id);
    $("text").focus();
  } catch (error) {
    showError($("make-thread"), error.message);
  }
});

$("new-thread").onclick = () => $("make-thread").showModal();
$("cancel-thread").onclick = () => $("make-thread").close();
$("sign-out").onclick = signOut;
$("menu").onclick = () => $("chat").classList.toggle("menu-open");
$("log").addEventListener("click", () => $("chat").classList.remove("menu-open"));
for (const tool of ["break", "wire"]) {
  const [section, show] = [$(tool), $(`show-${tool}`)];
  $(`hide-${tool}`).onclick = () => show.click();
  show.onclick = () => {
    section.hidden = !section.hidden;
    show.setAttribute("aria-pressed", String(!section.hidden));
    $("tools").hidden = $("break").hidden && $("wire").hidden;
    $("chat").classList.toggle("with-tools", !$("tools").hidden);
    if (tool === "break" && !section.hidden) breaking.refresh();
  };
}

// the cookie that opens streams is short-lived: renew it before it ends
setInterval(() => { if (state.me) refresh().catch(() => {}); }, 8 * 60 * 1000);

const kept = sessionStorage.getItem("commitcast-demo");
if (kept) {
  state.me = JSON.parse(kept);
  refresh().catch(() => {}).then(() => { if (state.me) enter(); });
} else {
  $("sign-in").hidden = false;
}

// Draws what the page knows. Text from people and models goes in as text, never as HTML.

export const $ = (id) => document.getElementById(id);

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export function showError(place, text) {
  const shown = place.querySelector(".error");
  shown.textContent = text;
  shown.hidden = !text;
}

export function messageItem(message, me) {
  const kind = message.author_id === null ? "agent" : message.author_id === me ? "mine" : "other";
  const time = new Date(message.created_at);
  const item = element("li", { className: `message ${kind}` },
    element("p", { className: "by" },
      element("b", { textContent: message.author }),
      element("time", {
        dateTime: message.created_at,
        textContent: time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }),
      })),
    element("p", { className: "text", textContent: message.text }));
  item.dataset.id = message.id;
  item.dataset.number = message.number;
  return item;
}

/** A message of our own that is not confirmed: being saved, not certain, or not saved. */
export function sentItem(entry, author, on) {
  const words = { saving: "saving…", unsure: "asking what became of it…", failed: "not saved" };
  const item = element("li", { className: "message mine sent" },
    element("p", { className: "by" },
      element("b", { textContent: author }), element("span", { textContent: words[entry.state] })),
    element("p", { className: "text", textContent: entry.text }));
  item.dataset.key = entry.key;
  item.dataset.state = entry.state;
  if (entry.state === "failed") {
    const notice = element("div", { className: "notice" },
      element("p", {}, element("b", { textContent: "Not saved" }), ` — ${entry.why}`),
      element("div", { className: "row end" },
        element("button", { type: "button", className: "plain", textContent: "Discard", onclick: on.discard }),
        element("button", { type: "button", textContent: "Retry", onclick: on.retry })));
    notice.setAttribute("role", "alert");
    item.append(notice);
  }
  return item;
}

const NAMES = { describe_schema: "Looked at the tables", run_sql: "Ran SQL" };
const DOING = { describe_schema: "Looking at the tables…", run_sql: "Running SQL…" };

export function runSummary(run) {
  const tools = run.steps.filter((step) => step.kind === "tool").length;
  const last = run.steps.at(-1);
  switch (run.state) {
    case "failed": return [run.error || "The answer failed.", takenBack(run)].filter(Boolean).join(" ");
    case "completed": return `Answered in ${tools} ${tools === 1 ? "step" : "steps"}, each committed first`;
    case "queued": return "Waiting for the agent…";
    default:
      if (last?.kind === "tool" && !last.outcome) return DOING[last.tool] ?? `Running ${last.tool}…`;
      return "Thinking…";
  }
}

function takenBack(run) {
  const steps = run.steps_taken_back ?? 0;
  if (!steps || run.error?.includes("taken back")) return "";
  return `${steps} ${steps === 1 ? "step was" : "steps were"} taken back.`;
}

export function stepItem(step) {
  const item = element("li", { className: "step" });
  item.dataset.kind = step.kind;
  if (step.kind === "thinking") {
    if (!step.text) return null;
    item.append(element("p", { className: "quiet", textContent: step.text }));
    return item;
  }
  const name = step.outcome ? NAMES[step.tool] ?? step.tool : DOING[step.tool] ?? step.tool;
  item.append(element("p", { className: "name", textContent: name }));
  if (step.arguments?.sql) item.append(element("pre", { textContent: step.arguments.sql }));
  if (step.outcome) item.append(outcome(step.outcome));
  return item;
}

function outcome(found) {
  if (found.error) return element("p", { className: "error", textContent: found.error });
  if (found.tables) {
    const names = found.tables.map((table) => `${table.name} (${table.columns.join(", ")})`);
    return element("p", { className: "quiet small", textContent: names.join(" · ") });
  }
  const count = `${found.row_count}${found.truncated ? "+" : ""} row${found.row_count === 1 ? "" : "s"}`;
  const box = element("div", {}, element("p", { className: "quiet small rows", textContent: count }));
  if (found.rows?.length) {
    box.append(element("table", {},
      element("thead", {}, row("th", found.columns)),
      element("tbody", {}, ...found.rows.map((cells) => row("td", cells)))));
  }
  return box;
}

function row(tag, cells) {
  return element("tr", {}, ...cells.map((cell) => element(tag, {
    textContent: cell === null ? "–" : typeof cell === "number" ? String(Math.round(cell * 1e4) / 1e4) : cell,
  })));
}

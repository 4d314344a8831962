// The strip under the header: each operation of this user, its outcome, and what was taken back.

import { $, element } from "./view.js";

const WORDS = { open: "open", committed: "committed", rolled_back: "rolled back" };
const MOST = 30;

export class Strip {
  /** @param {() => Promise<object[]>} load asks for the newest operations */
  constructor(load) {
    this.load = load;
    this.known = new Map();
  }

  /** Events say at once what happened; the server then says the rest, such as the attempt. */
  tell(id, name, outcome, more = {}) {
    const before = [...this.known.values()].filter((one) => one.id === id).map((one) => one.attempt);
    const attempt = more.attempt ?? Math.max(1, ...before);
    const key = `${id}.${attempt}`;
    const one = this.known.get(key) ?? { announced_at: new Date().toISOString() };
    if (one.outcome && one.outcome !== "open") return this.refresh(); // it has one, for good
    this.known.set(key, { ...one, id, name, outcome, attempt, ...more });
    this.draw();
    this.refresh();
  }

  refresh() {
    this.timer ??= setTimeout(async () => {
      this.timer = null;
      try {
        this.known = new Map((await this.load()).map((one) => [`${one.id}.${one.attempt}`, one]));
      } catch {
        return; // the server is away: what the events said stays
      }
      this.draw();
    }, 250);
  }

  draw() {
    const newest = [...this.known.values()]
      .sort((a, b) => b.announced_at.localeCompare(a.announced_at)).slice(0, MOST);
    $("strip").hidden = newest.length === 0;
    $("operations").replaceChildren(...newest.map(operationItem));
  }
}

function operationItem(one) {
  const item = element("li", {}, element("span", { className: "dot" }),
    element("b", { textContent: one.name }),
    element("span", { textContent: WORDS[one.outcome] ?? one.outcome }));
  if (one.attempt > 1) item.append(element("span", { className: "quiet", textContent: `attempt ${one.attempt}` }));
  if (one.outcome === "rolled_back") {
    item.append(element("span", { className: "back", textContent: `took back ${takenBack(one)}` }));
  }
  item.dataset.outcome = one.outcome;
  item.dataset.id = one.id;
  item.dataset.attempt = one.attempt;
  item.title = [one.id, `attempt ${one.attempt}`, one.announced_at, one.user_message].filter(Boolean).join("\n");
  return item;
}

function takenBack(one) {
  if (one.name === "message") return "the message";
  const steps = one.steps_taken_back ?? 0;
  return steps ? `${steps} ${steps === 1 ? "step" : "steps"}` : "nothing that was shown";
}

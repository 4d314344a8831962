// The score strip: one number for whether the layers move together, and what it is made of.

import { $, element } from "./view.js";

const NAMES = {
  database_socket: "Commit → socket", transaction_boundary: "After its commit",
  rollback_notification: "Failures told", isolation: "Own streams only",
  agent_state: "Agent state", cache: "Cache",
};
const EVERY_MS = 5_000;

export class Health {
  /** @param {() => Promise<object>} load asks for /realtime/health */
  constructor(load) {
    this.load = load;
  }

  /** Ask now and every five seconds, while the page is looked at. */
  start() {
    this.timer ??= setInterval(() => document.hidden || this.refresh(), EVERY_MS);
    this.refresh();
  }

  async refresh() {
    try {
      this.draw(await this.load());
    } catch {
      // the server is away: what it said last stays, and the connection's state says why
    }
  }

  draw(report) {
    $("health").hidden = false;
    score($("score"), report.overall);
    $("score").title = `The last ${report.window_minutes} minutes, 0 to 100`;
    const pairs = Object.entries(report.by_pair).filter(([, pair]) => pair.score !== null);
    $("pairs").replaceChildren(...pairs.map(([name, pair]) => {
      const item = element("li", {}, element("span", { textContent: NAMES[name] ?? name }),
        score(element("b"), pair.score));
      item.dataset.pair = name;
      item.title = `${pair.steps} steps, ${pair.late} late, ${pair.broken} broken; the slowest took `
        + `${Math.round(pair.worst_ms)} ms of ${pair.threshold_ms} ms`;
      return item;
    }));
  }
}

/** Rounded down, so that 100 means that nothing was out of step. */
function score(place, value) {
  place.textContent = value === null ? "–" : String(Math.floor(value));
  place.dataset.level = value === null ? "none" : value < 80 ? "bad" : value < 100 ? "fair" : "good";
  return place;
}

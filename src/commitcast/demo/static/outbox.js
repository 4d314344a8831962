// Messages that this tab has sent and that are not confirmed yet. They are shown at once, as
// "saving…", and taken back when they were not saved. Each has a key by which the server knows it
// again, so that sending one again never doubles it.

const KEPT = "commitcast-demo-outbox";
const UNREACHED = "The server cannot be reached, or does not know of it. Send it again when it is back.";

/** A random UUID; over plain HTTP from another machine a browser offers no crypto.randomUUID. */
function newKey() {
  return crypto.randomUUID?.()
    ?? [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

export class Outbox {
  /**
   * @param {{post: (entry: object) => Promise<object>, operations: () => Promise<object[]>,
   *   operation: (id: string) => Promise<object>, draw: (entry: object) => void,
   *   erase: (entry: object) => void, settled: () => void}} on
   *   post: send a message; operations, operation: ask what became of what was sent;
   *   draw, erase: show an entry, or no longer; settled: something got its outcome
   */
  constructor(on) {
    this.on = on;
    this.entries = new Map((JSON.parse(sessionStorage.getItem(KEPT)) ?? []).map((one) => [one.key, one]));
    // what a page was sending when it was left has an outcome by now, or will have
    for (const entry of this.entries.values()) if (entry.state === "saving") entry.state = "unsure";
  }

  of(thread) {
    return [...this.entries.values()].filter((one) => one.thread === thread && !one.seen);
  }

  send(thread, text) {
    return this.post({ key: newKey(), thread, text, told: 0 });
  }

  retry(key) {
    return this.post(this.entries.get(key));
  }

  discard(key) {
    this.done(this.entries.get(key));
  }

  async post(entry) {
    this.change(entry, { state: "saving", why: null });
    try {
      const { operation_id: operation } = await this.on.post(entry);
      entry.operation = operation;
      this.done(entry); // its message.created is here, or on its way
    } catch (error) {
      const problem = error.problem ?? {};
      entry.operation = problem.operation_id ?? entry.operation;
      if (problem.outcome === "rolled_back") this.takeBack(entry, problem.attempt, problem.detail);
      else if (!error.problem || problem.outcome === "open" || problem.status === 409) this.ask(entry);
      else if (problem.status >= 500) this.ask(entry);
      else this.change(entry, { state: "failed", why: error.message });
    }
    this.on.settled();
  }

  /** A committed message of this user's came: is it one of ours? */
  created(message, operation) {
    const waiting = [...this.entries.values()].filter((one) => one.thread === message.thread_id && !one.seen);
    const entry = waiting.find((one) => one.operation === operation)
      ?? waiting.find((one) => one.state !== "failed" && one.text === message.text);
    if (!entry) return;
    if (entry.state === "saving") this.change(entry, { seen: true }); // its answer is still to come
    else this.done(entry);
  }

  /** A rollback notification of this user's came. */
  async rolledBack(told) {
    let entry = [...this.entries.values()].find((one) => one.operation === told.operation_id);
    if (!entry && this.entries.size) {
      const found = await this.on.operation(told.operation_id).catch(() => null);
      entry = this.entries.get(found?.idempotency_key);
    }
    if (!entry) return;
    entry.operation = told.operation_id;
    this.takeBack(entry, told.attempt, told.user_message);
  }

  /** One failure is one notice, whoever brings it first: the answer, the event, or the question. */
  takeBack(entry, attempt, why) {
    if (attempt <= entry.told || !this.entries.has(entry.key)) return;
    this.change(entry, { state: "failed", seen: false, told: attempt, why });
    this.on.settled();
  }

  ask(entry) {
    this.change(entry, { state: "unsure", why: null });
    this.settle();
  }

  /** Ask the server what became of what we are not sure of, until we are. */
  async settle() {
    clearTimeout(this.timer);
    const unsure = () => [...this.entries.values()].filter((one) => one.state === "unsure");
    if (!unsure().length) return;
    let known = null;
    try {
      known = await this.on.operations();
    } catch {
      // the server is away
    }
    for (const entry of known ? unsure() : []) {
      const latest = known.filter((one) => one.idempotency_key === entry.key)
        .sort((a, b) => b.attempt - a.attempt)[0];
      if (!latest) this.change(entry, { state: "failed", why: UNREACHED });
      else if (latest.outcome === "committed") this.done(entry);
      else if (latest.outcome === "rolled_back") {
        entry.operation = latest.id;
        this.takeBack(entry, latest.attempt, latest.user_message);
        if (entry.state === "unsure") this.change(entry, { state: "failed", why: latest.user_message });
      }
    }
    if (unsure().length) this.timer = setTimeout(() => this.settle(), 1000);
  }

  change(entry, values) {
    Object.assign(entry, values);
    this.entries.set(entry.key, entry);
    this.keep();
    if (entry.seen) this.on.erase(entry);
    else this.on.draw(entry);
  }

  done(entry) {
    if (!entry) return;
    this.entries.delete(entry.key);
    this.keep();
    this.on.erase(entry);
  }

  keep() {
    sessionStorage.setItem(KEPT, JSON.stringify([...this.entries.values()]));
  }

  forget() {
    clearTimeout(this.timer);
    sessionStorage.removeItem(KEPT);
  }
}

// One stream of committed events. It keeps its position, so that a lost connection, an expired
// cookie or a restarted server costs nothing: what was committed meanwhile is sent again.

export class LiveStream {
  /**
   * @param {string} name the stream, such as "thread:<id>"
   * @param {string} user whose cookie opens it
   * @param {{refresh: () => Promise<void>, reload: () => Promise<void>,
   *   event: (frame: object) => void, state: (word: string) => void}} on
   *   refresh: get a new cookie; reload: get the state anew, the position could not be kept
   */
  constructor(name, user, on) {
    this.name = name;
    this.user = user;
    this.on = on;
    this.position = null; // "epoch:offset" of the last event seen
    this.seen = new Set();
    this.waiting = null; // events that came while the state was being loaded
    this.loads = 0;
    this.failures = 0;
    this.closed = false;
    this.open();
    // a browser opens about six connections to one server: a tab nobody sees gives its own back
    this.seenOrNot = () => (document.hidden ? this.pause() : this.resume());
    document.addEventListener("visibilitychange", this.seenOrNot);
  }

  pause() {
    clearTimeout(this.timer);
    this.source.close();
    this.paused = true;
  }

  resume() {
    if (!this.paused || this.closed) return;
    this.paused = false;
    this.again();
  }

  open() {
    const address = new URL("/realtime/sse", location.origin);
    address.searchParams.set("stream", this.name);
    address.searchParams.set("user", this.user);
    if (this.position) address.searchParams.set("cursor", this.position);
    this.source = new EventSource(address);
    this.source.onmessage = (message) => this.receive(JSON.parse(message.data), message.lastEventId);
    this.source.onerror = () => this.lost();
    this.source.addEventListener("commitcast.subscribed", (message) => this.subscribed(message));
    this.source.addEventListener("commitcast.reset", (message) => this.start(message, "live"));
  }

  close() {
    this.closed = true;
    document.removeEventListener("visibilitychange", this.seenOrNot);
    clearTimeout(this.timer);
    this.source.close();
  }

  subscribed(message) {
    this.failures = 0;
    if (JSON.parse(message.data).recovered) this.on.state(this.waiting ? "connecting" : "recovered");
    else this.start(message, "live");
  }

  /** The position could not be kept, or there was none: load the state, then go on from here. */
  async start(message, word) {
    this.position = message.lastEventId || null;
    this.waiting ??= [];
    const load = ++this.loads;
    for (let attempt = 0; !this.closed && load === this.loads; attempt += 1) {
      try {
        await this.on.reload();
        break;
      } catch {
        await new Promise((go) => setTimeout(go, Math.min(5000, 300 * 2 ** attempt)));
      }
    }
    if (this.closed || load !== this.loads) return;
    const waiting = this.waiting;
    this.waiting = null;
    waiting.forEach((frame) => this.on.event(frame));
    this.on.state(word);
  }

  receive(frame, position) {
    this.position = position;
    if (this.seen.has(frame.id)) return;
    this.seen.add(frame.id);
    if (this.waiting) this.waiting.push(frame);
    else this.on.event(frame);
  }

  lost() {
    if (this.closed) return;
    this.on.state("reconnecting");
    if (this.source.readyState !== EventSource.CLOSED) return; // the browser tries again itself
    this.source.close();
    clearTimeout(this.timer);
    const longest = Math.min(8000, 400 * 2 ** this.failures++);
    this.timer = setTimeout(() => this.again(), longest * (0.5 + Math.random() / 2));
  }

  async again() {
    try {
      await this.on.refresh();
    } catch {
      // the server is away: opening the stream fails as well, and leads back here
    }
    if (!this.closed && !this.paused) this.open();
  }
}

// Reads one stream with a published client, as its own documentation shows, and prints what the
// client hands over: one JSON line for each message. `node read.mjs CLIENT URL TOKEN`
import process from "node:process";

const [client, url, token] = process.argv.slice(2);
const headers = { Authorization: `Bearer ${token}` };
const names = ["subscribed", "reset", "closed", "unavailable"].map((name) => `commitcast.${name}`);

function tell({ event, data, id, lastEventId, type }) {
  const name = event || (type === "message" ? "" : type) || "";
  console.log(JSON.stringify({ event: name, id: id || lastEventId || "", data }));
}

const clients = {
  "@microsoft/fetch-event-source": async () => {
    globalThis.window = globalThis; // it is written for browsers
    globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };
    const { fetchEventSource } = await import("@microsoft/fetch-event-source");
    await fetchEventSource(url, {
      headers,
      onmessage: tell,
      onclose() {
        throw new Error("the server ended it: again");
      },
    });
  },
  eventsource: async () => {
    const { EventSource } = await import("eventsource");
    const source = new EventSource(url, {
      fetch: (input, init) => fetch(input, { ...init, headers: { ...init.headers, ...headers } }),
    });
    source.onmessage = tell;
    names.forEach((name) => source.addEventListener(name, tell));
  },
  "eventsource-client": async () => {
    const { createEventSource } = await import("eventsource-client");
    createEventSource({ url, headers, onMessage: tell });
  },
};

setInterval(() => {}, 1000); // some clients let the process end while they wait
await clients[client]();

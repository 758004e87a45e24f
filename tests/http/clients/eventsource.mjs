// Reads events with the npm package eventsource.
import { createRequire } from "node:module";
const require = createRequire(process.env.STEPWELL_HTTP_CLIENTS + "/");
const { EventSource } = require("eventsource");

const names = ["created", "started", "phase:started", "phase:completed", "phase:failed", "retrying", "interrupted", "completed", "failed", "cancelled"];
let left = Number(process.argv[3]);
const source = new EventSource(process.argv[2]);
source.addEventListener("error", () => console.error("again"));
for (const name of names) {
  source.addEventListener("job:" + name, event => {
    console.log(event.data);
    if (--left === 0) source.close();
  });
}

// Drives the dashboard: the page follows, acts, and recovers. See page.mjs.
import assert from "node:assert/strict";
import { address, badge, confirmed, drive, enqueue, isOnPhone, open, page, picture, say, tell } from "./page.mjs";

await drive(async () => {
  await page.goto(address + "/");
  await page.getByText("No jobs yet").waitFor();
  await page.locator("#live.on").waitFor();
  await picture("empty");
  say("empty list, live");

  // Jobs run, and the page follows by itself.
  for (let n = 0; n < 12; n++) await enqueue({ n });
  await page.locator("tr", { hasText: "#12" }).locator(".badge.completed").waitFor();
  const slow = await enqueue({ fetch_ms: 120, parse_ms: 90000 });
  await page.locator("tr", { hasText: "#" + slow }).locator(".badge.running").waitFor();
  say("the list follows");
  for (let n = 0; n < 4; n++) await enqueue({ fails_until: 9, row: 100 + n });
  const panics = await enqueue({ fetch_ms: 300, parse_ms: 500, load_ms: 200, panics: true, fails_until: 2, row: 3 });
  await open("#/jobs/" + panics);
  await badge("failed");
  assert.ok((await page.locator(".timeline rect.bar-failed").count()) >= 2, "failed attempts are drawn");
  await page.getByText("index out of bounds").first().waitFor();
  // Two pauses of 2 s between attempts of half a second: shaded, named, and drawn shorter than half of what they lasted.
  const drawn = await page.locator(".timeline").evaluate(timeline => {
    const wide = part => part.getBoundingClientRect().width;
    return { gaps: [...timeline.querySelectorAll(".gap")].map(wide), bars: [...timeline.querySelectorAll(".bar-failed")].map(wide), text: timeline.textContent };
  });
  assert.ok(drawn.gaps.length >= 2 && drawn.text.includes("2.0 s"), JSON.stringify(drawn));
  assert.ok(Math.max(...drawn.gaps) < 2 * Math.max(...drawn.bars), JSON.stringify(drawn));
  say("a job that fails, attempt by attempt");
  await picture("failed-job");
  await open("#/jobs?status=failed");
  await page.locator("tr", { hasText: "#17" }).waitFor();

  // Rows that somebody reads stay where they are: what is new is offered, not pushed in.
  await open("#/jobs");
  await page.locator("tr", { hasText: "#" + panics }).waitFor();
  await page.locator("tr", { hasText: "#" + slow }).locator("td").nth(1).dblclick({ position: { x: 25, y: 15 } });
  const top = () => page.locator("tr", { hasText: "#" + slow }).evaluate(row => row.rowIndex);
  const place = await top();
  await enqueue({ n: "while somebody reads" });
  await page.getByRole("button", { name: "1 newer job: show" }).waitFor();
  assert.equal(await top(), place);
  assert.equal(await page.evaluate(() => String(getSelection()).trim()), "import", "the selection stays");
  await page.getByRole("button", { name: "1 newer job: show" }).click();
  await page.waitForFunction(place => document.querySelector("table.list").rows.length > place + 1, place);
  assert.equal(await top(), place + 1);
  await page.evaluate(() => getSelection().removeAllRanges());
  say("rows stay while they are read");

  // A tab that nobody sees asks for nothing, and catches up when it is seen again.
  const hide = hidden => page.evaluate(hidden => { Object.defineProperty(document, "hidden", { value: hidden, configurable: true }); document.dispatchEvent(new Event("visibilitychange")); }, hidden);
  const metric = async () => (await (await fetch(address + "/metrics")).text()).match(/stepwell_http_streams (\d+)/)[1];
  await hide(true);
  for (const end = Date.now() + 15000; await metric() !== "0";) assert.ok(Date.now() < end, "the stream is let go");
  const asked = [];
  const note = request => asked.push(request.url());
  page.on("request", note);
  const unseen = await enqueue({ n: "unseen" });
  await page.waitForTimeout(2500);
  assert.deepEqual(asked, [], "nothing is asked while hidden");
  page.off("request", note);
  await hide(false);
  await page.locator("tr", { hasText: "#" + unseen }).locator(".badge.completed").waitFor();
  say("still while hidden");

  // What is open stays open while events come in.
  await open("#/jobs/" + slow);
  await badge("running");
  assert.equal(await page.getByText("300 of 1000 rows").count(), 0, "what an earlier phase told is not this one's");
  await page.locator("summary", { hasText: "fetch" }).click();
  await page.getByText('"rows": 1000').waitFor();
  await page.getByText('"checksum": 18446744073709551615').waitFor();
  const ticking = () => page.locator("svg.timeline text").last().textContent();
  const before = await ticking();
  await page.waitForFunction(before => [...document.querySelectorAll("svg.timeline text")].pop().textContent !== before, before);
  await enqueue({ n: "more" });
  await page.waitForFunction(() => document.querySelector("details[open] pre"));
  assert.ok(await page.getByText('"rows": 1000').isVisible(), "the result is still open");
  await picture("job");
  say("what is open stays open");

  // Payloads are shown as they are: JavaScript would round the large number, and write 1.0 as 1.
  const exact = await tell('enqueue {"big":9007199254740993,"deep":[{"x":null},[-1e-7,[],{}]],"one":1.0,"text":"a \\"b\\", [c]: {d}\\\\","fetch_ms":90000}');
  await open("#/jobs/" + exact);
  await page.getByText("300 of 1000 rows").waitFor();
  await page.locator("summary", { hasText: "Input" }).click();
  assert.equal(await page.locator("details[open] pre").last().textContent(), `{
  "big": 9007199254740993,
  "deep": [
    {
      "x": null
    },
    [
      -1e-7,
      [],
      {}
    ]
  ],
  "fetch_ms": 90000,
  "one": 1.0,
  "text": "a \\"b\\", [c]: {d}\\\\"
}`);
  await fetch(address + "/api/jobs/" + exact + "/cancel", { method: "POST", headers: { "Content-Type": "application/json" } });
  await badge("cancelled");
  await open("#/jobs/" + slow);
  await badge("running");
  say("payloads and progress");

  // Actions, confirmed by what the server says.
  await confirmed("Cancel", "Cancel job");
  await page.locator(".toast", { hasText: "Cancelled." }).waitFor();
  await badge("cancelled");
  await confirmed("Retry from failed phase", "Retry");
  await badge("running");
  await confirmed("Cancel", "Cancel job");
  await badge("cancelled");
  await confirmed("Delete", "Delete");
  await page.getByRole("heading", { name: "All jobs" }).waitFor();
  say("cancel, retry, delete");
  await confirmed("Pause queue", "Pause");
  await page.locator("#paused").getByText("The queue is paused").waitFor();
  const held = await enqueue({ n: "held" });
  await open("#/jobs/" + held);
  await page.getByText("the queue is paused", { exact: true }).waitFor();
  await confirmed("Resume queue", "Resume");
  await badge("completed");
  await page.locator("#paused").waitFor({ state: "hidden" });
  say("pause, why it waits, resume");

  // Failed jobs by error, and retried together.
  await open("#/errors");
  await page.locator("a.group").nth(1).waitFor();
  await picture("errors");
  await page.locator("a.group", { hasText: "4 × import" }).click();
  await page.locator("pre.failed", { hasText: "row 10" }).waitFor();
  await picture("group");
  await page.getByRole("button", { name: "Retry these 4" }).click();
  await page.locator("dialog").getByRole("button", { name: "Retry 4" }).click();
  await page.locator(".toast", { hasText: "4 jobs are pending again" }).waitFor();
  say("errors by group");

  // The server dies and comes back: the page says so, recovers by itself, and its list of events has no gap.
  const cut = await enqueue({ fetch_ms: 20, parse_ms: 90000 });
  await open("#/events");
  await page.locator("tr[data-seq]", { hasText: "#" + cut }).filter({ hasText: "parse" }).first().waitFor();
  await page.evaluate(() => { window.same = true; });
  await tell("kill");
  await page.getByText("The connection to the server is lost").waitFor();
  await picture("lost");
  await tell("start");
  await page.locator("#banner").waitFor({ state: "hidden" });
  const after = await enqueue({ n: "after" });
  await page.locator("tr[data-seq]", { hasText: "#" + after }).filter({ hasText: "phase:completed" }).first().waitFor();
  const seqs = await page.locator("tr[data-seq]").evaluateAll(rows => rows.map(row => Number(row.dataset.seq)));
  assert.ok(seqs.length > 50, String(seqs.length));
  seqs.forEach((seq, i) => { if (i) assert.equal(seq, seqs[i - 1] - 1, "no gap: " + seqs); });
  assert.ok(await page.evaluate(() => window.same), "without a reload");
  await open("#/jobs/" + cut);
  await page.getByText(/^Interrupted in parse, attempt 1, after .*: process died\.$/).waitFor();
  assert.equal(await page.locator(".timeline .bar-interrupted").count(), 1, "it is drawn");
  assert.equal(await page.locator(".timeline .bar-running").count(), 1, "and so is what goes on, beside it");
  await confirmed("Cancel", "Cancel job");
  await badge("cancelled");
  say("killed and restarted: " + seqs.length + " events without a gap");

  // Keyboard.
  await open("#/jobs");
  await page.locator("[data-row]").first().waitFor();
  await page.keyboard.press("/");
  await page.keyboard.type(String(panics));
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name: "Job #" + panics }).waitFor();
  await page.goBack();
  for (let n = 0; n < 10; n++) await enqueue({ n, fetch_ms: 60 * n });
  await enqueue({ fetch_ms: 400, parse_ms: 60000 });
  await page.locator(".badge.running").first().waitFor();
  await picture("list");
  await page.emulateMedia({ colorScheme: "dark" });
  await picture("dark");
  await open("#/jobs/" + panics);
  await badge("failed");
  await picture("dark-job");
  await page.emulateMedia({ colorScheme: "light" });
  await page.setViewportSize({ width: 390, height: 780 });
  await page.waitForFunction(() => document.querySelector("svg.timeline").viewBox.baseVal.width < 390);
  await picture("phone-job");
  await open("#/jobs");
  await page.locator("[data-row]").first().waitFor();
  await picture("phone");
  await isOnPhone();
  await open("#/jobs/999999");
  await page.getByText("there is no such job").waitFor();
  say("keyboard, dark, phone");
});

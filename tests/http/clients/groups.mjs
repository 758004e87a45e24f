// Failed jobs by error: each group has a link, all failed jobs can be looked at, and a group is retried whole. See page.mjs.
import assert from "node:assert/strict";
import { address, confirmed, drive, enqueue, isOnPhone, open, page, say } from "./page.mjs";

const names = () => page.locator("a.group b").allTextContents();
const post = (path, body) => fetch(address + path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
const failed = async () => (await (await fetch(address + "/api/stats")).json()).failed;
const until = async n => { for (const end = Date.now() + 30000; await failed() !== n;) assert.ok(Date.now() < end, "in time: " + n + " failed"); };
const text = said => page.getByText(said, { exact: true }).waitFor();
const fail = (fails, times = 1) => enqueue({ type: "export.daily", fails, times });

await drive(async () => {
  await page.goto(address + "/#/errors");
  await text("No job has failed.");
  // The oldest are of another kind than the 1,000 that are looked at first.
  await fail("no space left on disk 7: 100 % used?\nat /var & more", 3);
  await until(3);
  await text("3 × export.daily");
  await text("All 3 failed jobs were looked at.");
  await fail("no route to host 10.0.0.1", 1250);
  await until(1253);
  await text("The newest 1,000 of 1,253 failed jobs were looked at.");
  await page.waitForFunction(() => [...document.querySelectorAll("a.group b")].map(name => name.textContent).join() === "1,000 × export.daily");
  await page.getByRole("button", { name: "Look at 1,000 more" }).click();
  await text("All 1,253 failed jobs were looked at.");
  assert.deepEqual(await names(), ["1,250 × export.daily", "3 × export.daily"]);
  say("all that have failed, and what was looked at");

  // By keyboard to a group; its link has it after a reload, though only jobs beyond the first 1,000 are in it.
  await page.evaluate(() => document.activeElement.blur());
  await page.keyboard.press("j");
  await page.keyboard.press("j");
  await page.keyboard.press("Enter");
  const few = page.getByRole("heading", { name: "3 × export.daily" });
  await few.waitFor();
  const link = page.url();
  assert.equal(new URLSearchParams(link.split("?")[1]).get("error"), "no space left on disk #: # % used?\nat /var & more");
  await page.goto("about:blank");
  await page.goto(link);
  await few.waitFor();
  await page.locator("pre.failed", { hasText: "at /var & more" }).waitFor();
  assert.equal(await page.locator("[data-row]").count(), 3);
  await page.keyboard.press("Escape");
  await page.locator("a.group").nth(1).waitFor();
  assert.equal(new URL(page.url()).hash, "#/errors");
  say("a link to a group");

  // All of the large group, in more than one request, and nothing else.
  const sent = [];
  page.on("request", request => { if (request.method() === "POST") sent.push(JSON.parse(request.postData())); });
  await page.locator("a.group", { hasText: "no route" }).click();
  await page.getByRole("heading", { name: "1,250 × export.daily" }).waitFor();
  const gone = page.url();
  await page.getByRole("button", { name: "Pause queue" }).click();
  await page.locator("dialog").getByRole("button", { name: "Pause" }).click();
  await page.locator("#paused").getByText("The queue is paused").waitFor();
  sent.length = 0;
  await confirmed("Retry these 1,250", "Retry 1,250");
  await page.locator(".toast", { hasText: "1,250 jobs are pending again." }).waitFor({ timeout: 60000 });
  assert.deepEqual(sent.map(body => body.ids.length), [1000, 250]);
  assert.equal(new Set(sent.flatMap(body => body.ids)).size, 1250);
  assert.equal(await failed(), 3);
  say("retried whole");

  // The link of a group that is gone says so, and comes back with it.
  await text("No failed job has this error now.");
  await page.reload();
  await text("No failed job has this error now.");
  await page.locator("pre", { hasText: "no route to host #.#.#.#" }).waitFor();
  await text("All 3 failed jobs were looked at.");
  await page.setViewportSize({ width: 390, height: 780 });
  await page.emulateMedia({ colorScheme: "dark" });
  await isOnPhone();
  await page.goto(link);
  await few.waitFor();
  await isOnPhone();
  await open("#/errors");
  await page.locator("a.group").waitFor();
  await isOnPhone();
  await open("#/errors?nonsense");
  await text("This link names no group of errors.");
  await page.getByRole("link", { name: "All errors", exact: true }).click();
  await text("All 3 failed jobs were looked at.");
  await page.goto(gone);
  await text("No failed job has this error now.");
  await page.setViewportSize({ width: 1180, height: 860 });
  await confirmed("Resume queue", "Resume");
  await page.getByRole("heading", { name: "× export.daily" }).waitFor();
  await until(1253);
  await page.getByRole("heading", { name: "1,000 × export.daily" }).waitFor();
  say("gone, and back again");

  // Rows that somebody reads stay where they are, also when their jobs have moved on.
  await page.goto(link);
  await few.waitFor();
  const first = page.locator("[data-row]").first(), id = await first.textContent();
  await first.focus();
  await fetch(address + "/api/jobs/" + id.slice(1), { method: "DELETE", headers: { "Content-Type": "application/json" } });
  await page.locator("tr", { hasText: id }).getByText("moved on").waitFor();
  assert.equal(await first.textContent(), id);
  await page.getByRole("heading", { name: "2 × export.daily" }).waitFor();
  await first.evaluate(row => row.blur());
  await page.waitForFunction(() => document.querySelectorAll("[data-row]").length === 2);
  // The page hears of it when others retry one: by the event alone, since nothing was done in the page that has it look again.
  await post("/api/queue/pause", {});
  await page.locator("#paused").getByText("The queue is paused").waitFor();
  await post("/api/jobs/" + (await first.textContent()).slice(1) + "/retry", { from: "failed" });
  await page.getByRole("heading", { name: "1 × export.daily" }).waitFor();
  say("rows stay while they are read");

  // So do those of a list. One that is gone from it is marked, and those below what was looked at again are not.
  await open("#/jobs?status=failed");
  const rows = page.locator("[data-row]");
  for (let n = 50; n < 250; n += 50) {
    await rows.nth(n - 1).waitFor();
    await page.getByRole("button", { name: "Show more" }).click();
  }
  await rows.nth(249).waitFor();
  await rows.first().focus();
  const second = await rows.nth(1).textContent();
  await fetch(address + "/api/jobs/" + second.slice(1), { method: "DELETE", headers: { "Content-Type": "application/json" } });
  await page.locator("tr", { hasText: second }).getByText("moved on").waitFor();
  assert.deepEqual([await page.getByText("moved on").count(), await rows.count()], [1, 250]);
  await rows.first().evaluate(row => { row.blur(); scrollTo(0, 0); });
  await page.getByText("moved on").waitFor({ state: "detached" });
  assert.ok(!(await rows.allTextContents()).includes(second));
  say("rows of a list that are gone");

  // There is a limit to what is held back: a page that is read for a day, while jobs fail and move on, must not grow for ever.
  await page.goto(gone);
  await page.getByRole("heading", { name: /^1,2\d\d × export\.daily$/ }).waitFor();
  await rows.first().focus();
  assert.equal((await post("/api/jobs/bulk", { action: "delete", status: "failed" })).status, 200);
  await text("No failed job has this error now.");
  say("what is held has a limit");
});

// Jobs are found by their type: a field that one types in, and that offers the types that there are. See page.mjs.
import assert from "node:assert/strict";
import { address, drive, enqueue, isOnPhone, open, page, say } from "./page.mjs";

const field = page.getByRole("combobox", { name: /^Job type/ });
const shown = () => page.locator("table.list tbody tr td:nth-child(2)").allTextContents();
const link = () => page.evaluate(() => location.hash);
const empty = text => page.locator(".empty").getByText(text, { exact: true }).waitFor();

await drive(async () => {
  await page.goto(address + "/");
  for (let n = 0; n < 3; n++) await enqueue({ n });
  await enqueue({ type: "export.daily" });
  await enqueue({ type: "export.daily", fails: "no space left" });
  await page.locator("[data-row]").nth(4).waitFor();
  const offered = await page.locator("datalist#types option").evaluateAll(all => all.map(one => one.value));
  assert.deepEqual(offered, ["export.daily", "import"]);

  // By keyboard alone.
  await page.keyboard.press("t");
  await page.keyboard.type("export.daily");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.querySelectorAll("[data-row]").length === 2);
  assert.equal(await link(), "#/jobs?type=export.daily");
  assert.ok(await field.evaluate(field => field === document.activeElement), "one can type on");
  assert.deepEqual(await shown(), ["export.daily", "export.daily"]);
  say("typed");

  // The list goes on, with what fits; what is in the field stays while it is typed.
  await page.keyboard.type(".x");
  await enqueue({ n: "another type" });
  await enqueue({ type: "export.daily" });
  await page.waitForFunction(() => document.querySelectorAll("[data-row]").length === 3);
  assert.equal(await field.inputValue(), "export.daily.x");
  assert.deepEqual(new Set(await shown()), new Set(["export.daily"]));
  say("live");

  // A type that there is not: said, with those that fit it, each a link.
  await page.keyboard.press("Enter");
  await empty("There is no job type “export.daily.x”.");
  await field.fill("export");
  await field.press("Enter");
  await empty("There is no job type “export”.");
  await empty("Types with that in their name: export.daily");
  await page.locator(".empty").getByRole("link", { name: "export.daily" }).click();
  await page.waitForFunction(() => document.querySelectorAll("[data-row]").length === 3);
  assert.equal(await field.inputValue(), "export.daily");
  await field.fill("no such name!");
  await field.press("Tab");
  await empty("“no such name!” cannot be the name of a job type.");
  await empty("Types that there are: export.daily, import");
  assert.equal(await page.locator(".toast").count(), 0);
  assert.equal(await page.getByText("cannot be loaded").count(), 0, "that is no error");
  say("unknown types");

  // The link has it, also after a reload, and Back goes back.
  await page.reload();
  await empty("“no such name!” cannot be the name of a job type.");
  await page.goBack();
  await page.waitForFunction(() => document.querySelectorAll("[data-row]").length === 3);
  assert.equal(await field.inputValue(), "export.daily");
  await open("#/jobs?status=cancelled&type=import");
  await empty("No cancelled job of type import.");
  assert.equal(await field.inputValue(), "import");
  await page.locator(".empty").getByRole("link", { name: "All cancelled jobs" }).click();
  await empty("No cancelled job.");
  say("links");

  // What is picked from the list, or cleared, counts at once. A page of automation cannot open the list: this is the event of a choice.
  await open("#/jobs");
  await page.locator("[data-row]").nth(6).waitFor();
  const pick = value => field.evaluate((field, value) => { field.value = value; field.dispatchEvent(new InputEvent("input", { bubbles: true, inputType: "insertReplacementText" })); }, value);
  await pick("import");
  await page.waitForFunction(() => document.querySelectorAll("[data-row]").length === 4);
  assert.equal(await link(), "#/jobs?type=import");
  await field.fill("");
  await page.locator("[data-row]").nth(6).waitFor();
  assert.equal(await link(), "#/jobs?");
  say("picked, cleared");

  await page.setViewportSize({ width: 390, height: 780 });
  await open("#/jobs?type=export");
  await empty("There is no job type “export”.");
  assert.equal(await field.inputValue(), "export", "a link changes the field, also while one is in it");
  assert.ok(parseFloat(await field.evaluate(field => getComputedStyle(field).fontSize)) >= 16, "a phone does not zoom in");
  await isOnPhone();
  say("phone");

  // Five requests of 10,000 jobs each, and one is asked before more are made.
  await page.setViewportSize({ width: 1180, height: 860 });
  await open("#/jobs");
  await page.locator("[data-row]").nth(6).waitFor();
  await fetch(address + "/api/queue/pause", { method: "POST", headers: { "Content-Type": "application/json" } });
  await enqueue({ type: "export.daily", times: 51000 });
  const asked = [];
  page.on("request", request => { if (request.url().includes("type=import")) asked.push(request.url()); });
  await open("#/jobs?type=import");
  await empty("No job of type import among those that were looked at so far.");
  let run = 0;
  assert.equal(Math.max(...asked.map(url => run = url.includes("cursor") ? run + 1 : 1)), 5);
  await page.getByRole("button", { name: "Look further" }).click();
  await page.locator("[data-row]").nth(3).waitFor();
  say("a rare type");
});

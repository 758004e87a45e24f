// A page of Chromium on the dashboard, by playwright-core, for the scripts beside this one. They say on standard output what the
// test is to do, and read its answers. Argument: the server's address.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import assert from "node:assert/strict";
const require = createRequire(process.env.STEPWELL_HTTP_CLIENTS + "/");
const { chromium } = require("playwright-core");

export const address = "http://" + process.argv[2];
const images = process.env.STEPWELL_HTTP_IMAGES;
const answers = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
export const tell = async line => { console.log(line); return (await answers.next()).value; };
export const enqueue = input => tell("enqueue " + JSON.stringify(input));
export const say = text => console.log("  " + text);

const browser = await chromium.launch({ executablePath: process.env.CHROMIUM || "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu"] });
export const page = await browser.newPage({ viewport: { width: 1180, height: 860 }, colorScheme: "light", locale: "en-GB" });
page.setDefaultTimeout(15000);
const problems = [];
page.on("pageerror", error => problems.push("script: " + error.message));
page.on("console", message => { if (message.type() === "error" && !/ERR_|Failed to load/.test(message.text())) problems.push("console: " + message.text()); });
const foreign = [];
page.on("request", request => { if (!request.url().startsWith(address)) foreign.push(request.url()); });
export const picture = async name => {
  if (!images) return;
  await page.evaluate(() => document.getElementById("toasts").replaceChildren());
  await page.screenshot({ path: `${images}/${name}.png` });
};
export const open = hash => page.evaluate(hash => { location.hash = hash; }, hash);
export const confirmed = async (button, word) => {
  await page.getByRole("button", { name: button, exact: true }).click();
  await page.locator("dialog").getByRole("button", { name: word, exact: true }).click();
};
export const badge = status => page.locator("h2 ~ .badge." + status).waitFor();
export const isOnPhone = async () => {
  const wide = await page.evaluate(() => document.documentElement.scrollWidth);
  assert.ok(wide <= 390, "nothing sticks out on a phone: " + wide);
};

/** Does the steps; no script may fail in the page, and nothing may be asked of another server. */
export async function drive(steps) {
  try {
    await steps();
    assert.deepEqual(problems, []);
    assert.deepEqual(foreign, []);
  } catch (error) {
    console.log(error.stack, problems);
    if (images) await page.screenshot({ path: images + "/problem.png" });
    process.exitCode = 1;
  }
  await browser.close();
  process.stdin.destroy();
}

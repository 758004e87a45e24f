// Signs in to the dashboard in Chromium, by playwright-core: with a wrong token, then with the right one. Arguments: URL, token.
import { createRequire } from "node:module";
import assert from "node:assert/strict";
const require = createRequire(process.env.STEPWELL_HTTP_CLIENTS + "/");
const { chromium } = require("playwright-core");

const [, , url, token] = process.argv;
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM || "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu"] });
const page = await browser.newPage();
page.setDefaultTimeout(15000);
try {
  await page.goto(url);
  await page.getByLabel("Token of this server").fill("a wrong token");
  await page.keyboard.press("Enter");
  await page.getByRole("alert").filter({ hasText: "this is not the token" }).waitFor();
  await page.getByLabel("Token of this server").fill(token);
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByText("No jobs yet").waitFor();
  await page.locator("#live.on").waitFor();
  assert.equal(await page.evaluate(() => document.cookie), "", "no script sees the cookie");
  const [cookie] = await page.context().cookies();
  assert.deepEqual([cookie.httpOnly, cookie.sameSite], [true, "Strict"]);
  await page.context().clearCookies();
  await page.reload();
  await page.getByLabel("Token of this server").waitFor();
} catch (error) {
  console.log(error.stack);
  process.exitCode = 1;
}
await browser.close();

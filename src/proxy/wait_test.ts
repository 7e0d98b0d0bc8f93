import assert from "node:assert/strict";
import { waitFor } from "./wait.ts";

Deno.test("waitFor: an event ends the wait, and so does its error", async () => {
  await waitFor(Promise.resolve(), 60_000);
  await assert.rejects(waitFor(Promise.reject(new Error("failed")), 60_000), /failed/);
});

Deno.test("waitFor: an event that does not come is not waited for", async () => {
  let came = false;
  const event = Promise.withResolvers<void>();
  await waitFor(event.promise.then(() => came = true), 1);
  assert.equal(came, false);
  event.resolve();
});

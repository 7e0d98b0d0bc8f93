import assert from "node:assert/strict";
import { type Entry, isWell, reportJson, reportText } from "./report.ts";

const FINE: Entry = { name: "listen", state: "ok", detail: "0.0.0.0:8443 is free", mend: [] };
const WRONG: Entry = {
  name: "service",
  state: "failed",
  protocol: "udp",
  address: "127.0.0.1:53",
  detail: "nobody listens there",
  mend: ["one", "two"],
};
const UNSURE: Entry = { ...FINE, name: "clients", state: "unknown" };

Deno.test("reportText: a line a check, commands below, the sum at the end", () => {
  assert.equal(
    reportText([FINE, WRONG, UNSURE, { ...UNSURE, state: "skipped" }]),
    `✓ listen: 0.0.0.0:8443 is free
✗ service: UDP 127.0.0.1:53 nobody listens there
    one
    two
? clients: 0.0.0.0:8443 is free
- clients: 0.0.0.0:8443 is free
It does not work: mend that and ask again`,
  );
  assert.match(reportText([WRONG, WRONG]), /mend the first of 2 and ask again$/);
  assert.match(reportText([FINE]), /\nIt works$/);
});

Deno.test("reportText: of several listeners a table with their names", () => {
  const of = (listener: string, entry: Entry): Entry => ({ ...entry, listener });
  const { address: _, protocol: __, ...whole } = WRONG;
  assert.equal(
    reportText([
      { ...whole, name: "capabilities" },
      of("mail", FINE),
      of("rtp-range", WRONG),
    ]),
    `✗ capabilities:           nobody listens there
    one
    two
✓ listen:       mail      0.0.0.0:8443 is free
✗ service:      rtp-range UDP 127.0.0.1:53 nobody listens there
    one
    two
It does not work: mend the first of 2 and ask again`,
  );
  assert.match(reportText([of("mail", FINE)]), /^✓ listen: 0\.0\.0\.0:8443 is free$/m);
});

Deno.test("reportJson: every finding, and what they come to", () => {
  assert.deepEqual(JSON.parse(reportJson([FINE, WRONG])), { ok: false, checks: [FINE, WRONG] });
});

Deno.test("isWell: what is not known speaks against nothing", () => {
  assert.equal(isWell([FINE, UNSURE, { ...UNSURE, state: "skipped" }]), true);
  assert.equal(isWell([FINE, WRONG]), false);
});

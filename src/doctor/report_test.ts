import assert from "node:assert/strict";
import { plain } from "../log/paint.ts";
import type { Entry } from "./checks.ts";
import { isWell, reportJson, reportText } from "./report.ts";

const FINE: Entry = { name: "listen", state: "ok", detail: "0.0.0.0:8443 is free", fix: [] };
const WRONG: Entry = {
  name: "service",
  state: "failed",
  protocol: "udp",
  address: "127.0.0.1:53",
  detail: "nobody listens there",
  fix: ["one", "two"],
};
const UNSURE: Entry = { ...FINE, name: "clients", state: "unknown" };
const DOUBTFUL: Entry = { ...FINE, name: "subnets", state: "warning", detail: "Every peer" };
const text = (...entries: Entry[]) => reportText(entries, plain);

Deno.test("reportText: a line a check in columns, commands below, the summary at the end", () => {
  assert.equal(
    text(FINE, WRONG, DOUBTFUL, UNSURE, { ...UNSURE, state: "skipped" }),
    `✓ listen:  0.0.0.0:8443 is free
✗ service: UDP 127.0.0.1:53 nobody listens there
    one
    two
! subnets: Every peer
? clients: 0.0.0.0:8443 is free
- clients: 0.0.0.0:8443 is free
1 check failed, 1 warning. Fix it, then run doctor again`,
  );
});

for (
  const [entries, summary] of [
    [[FINE], "All checks passed"],
    [[FINE, DOUBTFUL], "No check failed, 1 warning"],
    [[DOUBTFUL, DOUBTFUL], "No check failed, 2 warnings"],
    [[WRONG], "1 check failed. Fix it, then run doctor again"],
    [[WRONG, WRONG], "2 checks failed. Fix the first one, then run doctor again"],
  ] as const
) {
  Deno.test(`reportText: ${summary}`, () =>
    assert.equal(text(...entries).split("\n").at(-1), summary));
}

Deno.test("reportText: several listeners are groups with their names", () => {
  const of = (listener: string, entry: Entry): Entry => ({ ...entry, listener });
  const { address: _, protocol: __, ...plainly } = WRONG;
  assert.equal(
    text({ ...plainly, name: "routes" }, of("mail", FINE), of("rtp", FINE), of("rtp", UNSURE)),
    `This host
✗ routes:  nobody listens there
    one
    two
Listener mail
✓ listen:  0.0.0.0:8443 is free
Listener rtp
✓ listen:  0.0.0.0:8443 is free
? clients: 0.0.0.0:8443 is free
1 check failed. Fix it, then run doctor again`,
  );
  assert.match(text(of("mail", FINE)), /^✓ listen: 0\.0\.0\.0:8443 is free$/m);
});

Deno.test("reportText: colours are only around marks, names, commands and the summary", () => {
  const painted = reportText([FINE, WRONG], (style, text) => `<${style}>${text}</>`);
  assert.match(painted, /^<green>✓<\/> <dim>listen: <\/> 0\.0\.0\.0:8443 is free$/m);
  assert.match(painted, /^ {4}<bold>one<\/>$/m);
  assert.equal(painted.replaceAll(/<.*?>/g, ""), text(FINE, WRONG));
});

Deno.test("reportJson: every finding, and what they come to, without what --fix sets", () => {
  const settable: Entry = { ...WRONG, sets: { kind: "routes" } };
  assert.deepEqual(JSON.parse(reportJson([FINE, settable])), { ok: false, checks: [FINE, WRONG] });
});

Deno.test("isWell: a warning, and what is not known, speak against nothing", () => {
  assert.equal(isWell([FINE, DOUBTFUL, UNSURE, { ...UNSURE, state: "skipped" }]), true);
  assert.equal(isWell([FINE, WRONG]), false);
});

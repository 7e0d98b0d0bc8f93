import assert from "node:assert/strict";
import { packagedUnit } from "./dist.ts";
import { ReleaseError } from "./release.ts";

const UNIT = Deno.readTextFileSync(new URL("mmproxy.service", import.meta.url));

Deno.test("the packages' unit runs the configuration file as the package's user", () => {
  const unit = packagedUnit(UNIT);
  for (
    const line of [
      "ExecStart=/usr/bin/mmproxy --config /etc/mmproxy/mmproxy.toml",
      "ExecReload=/usr/bin/mmproxy reload",
      "User=mmproxy",
    ]
  ) assert.equal(unit.split("\n").filter((other) => other === line).length, 1, line);
  assert.doesNotMatch(unit, /\/opt|DynamicUser|MMPROXY_OPTIONS|EnvironmentFile/);
  // All that is not about where things are stays as it is.
  for (
    const line of UNIT.split("\n").filter((line) =>
      /^(Protect|Private|Restrict|System|Runtime|Environment=)/.test(line)
    )
  ) {
    assert.ok(unit.includes(`\n${line}\n`), line);
  }
});

Deno.test("a unit without a line that the packages replace is refused", () => {
  assert.throws(
    () => packagedUnit(UNIT.replace("DynamicUser=yes", "DynamicUser=no")),
    ReleaseError,
  );
});

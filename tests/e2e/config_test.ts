import assert from "node:assert/strict";
import { join } from "node:path";
import { runToEnd } from "./support/program.ts";

/** Checks files in a folder of their own, of which `m.toml` is the configuration. */
async function check(files: Record<string, string>) {
  const folder = await Deno.makeTempDir({ prefix: "mmproxy-config-" });
  try {
    for (const [name, text] of Object.entries(files)) {
      await Deno.writeTextFile(join(folder, name), text.replaceAll("{folder}", folder));
    }
    const ended = await runToEnd(["check", "--config", join(folder, "m.toml")]);
    const plain = (text: string) => text.replaceAll(`${folder}/`, "").trimEnd().split("\n");
    return { code: ended.code, stdout: plain(ended.stdout), stderr: plain(ended.stderr) };
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

const MAIL = `
workers = "auto"
[defaults]
allowed-subnets = "{folder}/subnets"
[[listener]]
name = "mail"
listen = ["192.0.2.1:25", "[2001:db8::1]:25"]
ipv4 = "127.0.0.1"
ipv6 = "::1"
`;

Deno.test("check: a file that can be taken is one line and code 0, with --allow-ffi alone", async () => {
  assert.deepEqual(await check({ "m.toml": MAIL, subnets: "198.51.100.0/24 # lb-1\n" }), {
    code: 0,
    stdout: ["m.toml: 1 listener on 2 TCP ports, a worker for each processor, no metrics"],
    stderr: [""],
  });
});

Deno.test("check: every mistake is a line, and the code is 2", async () => {
  const wrong = MAIL.replace("workers", "wokers").replace('"::1"', '"unix:/run/mail"');
  const { code, stdout, stderr } = await check({ "m.toml": wrong });
  assert.equal(code, 2);
  assert.deepEqual(stdout, [""]);
  assert.deepEqual(stderr, [
    'mmproxy: m.toml, line 2: wokers = "auto": unknown key; did you mean workers?',
    'mmproxy: m.toml, line 9: ipv6 = "unix:/run/mail": a unix socket cannot be an upstream, because a ' +
    "unix peer has no address to take the client's place: name an IP address and port",
  ]);
});

Deno.test("check: wrong lines of a subnet file, and a file that is not there", async () => {
  const lines = await check({ "m.toml": MAIL, subnets: "198.51.100.0/24\nlb-1\n10.0.0.1/8\n" });
  assert.equal(lines.code, 2);
  assert.deepEqual(lines.stderr, [
    'mmproxy: subnets, line 2: "lb-1" is not an IP address or subnet, for example 192.0.2.0/24',
    'mmproxy: subnets, line 3: "10.0.0.1/8" has host bits set: the subnet is 10.0.0.0/8',
  ]);
  const { code, stderr } = await check({});
  assert.equal(code, 2);
  assert.match(stderr.join("\n"), /^mmproxy: Cannot read m\.toml: No such file/);
});

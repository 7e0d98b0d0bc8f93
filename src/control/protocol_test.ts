import assert from "node:assert/strict";
import * as fc from "fast-check";
import { Problem } from "../config/problem.ts";
import { MOST_LISTED, parseRequest } from "./protocol.ts";

Deno.test("parseRequest: what is asked, bounded", () => {
  assert.deepEqual(parseRequest('{"command":"status","more":1}'), { command: "status" });
  assert.deepEqual(parseRequest('{"command":"connections","limit":1e9,"client":"10.0.0.0/8"}'), {
    command: "connections",
    limit: MOST_LISTED,
    client: "10.0.0.0/8",
  });
  assert.deepEqual(parseRequest('{"command":"close","listener":"web"}'), {
    command: "close",
    listener: "web",
  });
});

Deno.test("parseRequest: an invalid request is answered with a sentence", () => {
  for (
    const [line, text] of [
      ["", "the request is not JSON"],
      ["null", "the request is not an object"],
      ["{}", "there is no command (none)"],
      ['{"command":"fly"}', 'there is no command "fly"'],
      ['{"command":"close"}', "close needs a listener or a client"],
      ['{"command":"close","listener":3}', "a listener's name is a text"],
      ['{"command":"close","client":["10.0.0.0/8"]}', "the clients' subnet is a text"],
      [
        '{"command":"close","client":"10.0.0.1/8"}',
        'client "10.0.0.1/8" has host bits set: the subnet is 10.0.0.0/8',
      ],
    ] as const
  ) {
    const parsed = parseRequest(line);
    assert.ok(parsed instanceof Problem, line);
    assert.equal(parsed.text, text);
  }
});

Deno.test("parseRequest: nothing that comes throws, and nothing closes everything", () => {
  const value = fc.oneof(fc.jsonValue(), fc.constantFrom("close", "10.0.0.0/8", ""));
  const request = fc.dictionary(fc.constantFrom("command", "listener", "client", "limit"), value);
  fc.assert(fc.property(fc.oneof(fc.string(), request.map((it) => JSON.stringify(it))), (line) => {
    const parsed = parseRequest(line);
    if (parsed instanceof Problem || parsed.command !== "close") return;
    assert.ok(parsed.listener !== undefined || parsed.client !== undefined);
  }));
});

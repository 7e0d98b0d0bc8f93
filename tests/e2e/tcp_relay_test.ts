import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import net from "node:net";
import { Network } from "./support/addresses.ts";
import { show } from "./support/endpoints.ts";
import { bytes, concat, text, v1, v2, v2Local } from "./support/headers.ts";
import { Program } from "./support/program.ts";
import {
  type Handler,
  noise,
  Resettable,
  sha256,
  Stream,
  TcpService,
  tellAndEcho,
} from "./support/tcp.ts";
import { eventually, pause, within } from "./support/time.ts";

const CLIENT = { ip: "192.0.2.44", port: 40_321 };
const BALANCER = { ip: "198.51.100.1", port: 443 };
const MEBIBYTE = 1024 * 1024;
const BULK = 64 * MEBIBYTE;

/** A program before one service. */
async function relay(
  handler: Handler,
  act: (program: Program, service: TcpService) => Promise<void>,
  args: string[] = [],
): Promise<void> {
  await using service = new TcpService(handler);
  await using program = await Program.start({ args: ["-4", service.address, ...args] });
  await act(program, service);
}

Deno.test("tcp relay: the client's half-close reaches the service, the answer still comes", async () => {
  const answerAtEnd: Handler = async (stream) => {
    const all = await stream.rest();
    await stream.send(`${all.length} ${sha256(all)}`);
  };
  await relay(answerAtEnd, async (program) => {
    const payload = noise(300_000, 1);
    using client = await Stream.connect(program.listen.port);
    await client.send(v2(CLIENT, BALANCER), payload);
    await client.finish();
    assert.equal(text(await client.rest()), `300000 ${sha256(payload)}`);
  });
});

Deno.test("tcp relay: a half-close that comes with the header", async () => {
  const answerAtEnd: Handler = async (stream) => {
    await stream.send(`${(await stream.rest()).length} bytes`);
  };
  await relay(answerAtEnd, async (program) => {
    using client = await Stream.connect(program.listen.port);
    await client.send(v1(CLIENT, BALANCER));
    await client.finish();
    assert.equal(text(await client.rest()), "0 bytes");
  });
});

Deno.test("tcp relay: the service's half-close reaches the client, who still sends", async () => {
  let received = "";
  const closeFirst: Handler = async (stream) => {
    await stream.send("last words");
    await stream.finish();
    received = text(await stream.rest());
  };
  await relay(closeFirst, async (program) => {
    using client = await Stream.connect(program.listen.port);
    await client.send(v2(CLIENT, BALANCER));
    assert.equal(text(await client.rest()), "last words");
    await client.send("still ");
    await pause(200);
    await client.send("here");
    await client.finish();
    await eventually(() => received === "still here", "text after the half-close");
  });
});

Deno.test("tcp relay: the client's reset reaches the service as a reset", async () => {
  let ended: string | undefined;
  const watch: Handler = async (stream) => {
    await stream.line();
    await stream.send("ready");
    ended = await stream.end();
  };
  await relay(watch, async (program) => {
    await using client = await Resettable.connect(program.listen.port);
    client.send(concat(v2(CLIENT, BALANCER), bytes("hello\n")));
    assert.equal(text(await client.next()), "ready");
    client.reset();
    await eventually(() => ended === "reset", "reset at the service");
  });
});

Deno.test("tcp relay: the service's reset reaches the client as a reset", async () => {
  const server = net.createServer((socket) => {
    socket.on("error", () => {});
    socket.once("data", () => socket.resetAndDestroy());
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  try {
    const { port } = server.address() as net.AddressInfo;
    await using program = await Program.start({ args: ["-4", `127.0.0.1:${port}`] });
    using client = await Stream.connect(program.listen.port);
    await client.send(v2(CLIENT, BALANCER), "hello");
    assert.equal(await client.end(), "reset");
  } finally {
    await new Promise((resolve) => server.close(resolve));
  }
});

Deno.test("tcp relay: a plain close is not a reset, in either direction", async () => {
  let ended: string | undefined;
  const watch: Handler = async (stream) => {
    await stream.send("bye");
    await stream.finish();
    ended = await stream.end();
  };
  await relay(watch, async (program) => {
    using client = await Stream.connect(program.listen.port);
    await client.send(v2(CLIENT, BALANCER), "hello");
    assert.equal(await client.end(), "closed");
    await client.finish();
    await eventually(() => ended === "closed", "close at the service");
    const counters = await program.stop();
    assert.equal(counters.get("bytes_up"), 5);
    assert.equal(counters.get("bytes_down"), 3);
    assert.equal(counters.get("connections_active"), 0);
  });
});

/** Reads to the end, asleep at first and now and then, and returns the hash of what came. */
async function readSleepily(stream: Stream): Promise<string> {
  const hash = createHash("sha256");
  await pause(1500);
  let nextNap = 8 * MEBIBYTE;
  let count = 0;
  for (let chunk = await stream.read(); chunk !== null; chunk = await stream.read()) {
    hash.update(chunk);
    count += chunk.length;
    if (count < nextNap) continue;
    nextNap += 8 * MEBIBYTE;
    await pause(150);
  }
  return `${count} ${hash.digest("hex")}`;
}

Deno.test("tcp relay: 64 MiB to an upstream that sleeps arrive completely", async () => {
  const report: Handler = async (stream) => await stream.send(await readSleepily(stream));
  await relay(report, async (program) => {
    const payload = noise(BULK, 2);
    using client = await Stream.connect(program.listen.port);
    await client.send(v2(CLIENT, BALANCER));
    await within(client.write(payload), "end of sending", 60_000);
    await client.finish();
    const answer = text(concat(await client.read(1000, 60_000) ?? [], await client.rest()));
    assert.equal(answer, `${BULK} ${sha256(payload)}`);
  });
});

Deno.test("tcp relay: 64 MiB to a client that sleeps arrive completely, although the upstream closed", async () => {
  const payload = noise(BULK, 3);
  await relay((stream) => stream.write(payload), async (program) => {
    using client = await Stream.connect(program.listen.port);
    await client.send(v2(CLIENT, BALANCER));
    assert.equal(await readSleepily(client), `${BULK} ${sha256(payload)}`);
    await client.finish();
    const counters = await program.stop();
    assert.equal(counters.get("bytes_down"), BULK);
  });
});

Deno.test("tcp relay: 32 MiB in both directions at once", async () => {
  const payload = noise(BULK / 2, 4);
  await relay(tellAndEcho, async (program) => {
    using client = await Stream.connect(program.listen.port);
    await client.send(v2(CLIENT, BALANCER));
    assert.equal(await client.line(), show(CLIENT));
    const sent = client.write(payload).then(() => client.finish());
    assert.equal(sha256(await client.rest()), sha256(payload));
    await sent;
  });
});

Deno.test("tcp relay: an upstream that sends first is relayed before the client sends", async () => {
  const banner: Handler = async (stream) => {
    await stream.send("220 ready\n");
    await stream.rest();
  };
  await relay(banner, async (program) => {
    using client = await Stream.connect(program.listen.port);
    await client.send(v1(CLIENT, BALANCER));
    assert.equal(await client.line(), "220 ready");
  });
});

Deno.test("tcp relay: a client's port that is in use gives an ephemeral one, counted", async () => {
  await relay(tellAndEcho, async (program) => {
    using first = await Stream.connect(program.listen.port);
    await first.send(v2(CLIENT, BALANCER));
    assert.equal(await first.line(), show(CLIENT));
    using second = await Stream.connect(program.listen.port);
    await second.send(v2(CLIENT, BALANCER), "me too");
    const seen = await second.line();
    assert.match(seen, /^192\.0\.2\.44:\d+$/);
    assert.notEqual(seen, show(CLIENT));
    assert.equal(text(await second.exactly(6)), "me too");
    const event = await program.event("port_fallback");
    assert.equal(event.level, "debug");
    assert.equal(event.value, CLIENT.port);
    first[Symbol.dispose]();
    second[Symbol.dispose]();
    assert.equal((await program.stop()).get("port_fallbacks"), 1);
  });
});

Deno.test("tcp relay: a client's port in TIME_WAIT gives an ephemeral one, counted", async () => {
  // With timestamps the kernel lets connect(2) take a port back from TIME_WAIT at once.
  await Deno.writeTextFile("/proc/sys/net/ipv4/tcp_timestamps", "0");
  await using _restored = {
    [Symbol.asyncDispose]: () => Deno.writeTextFile("/proc/sys/net/ipv4/tcp_timestamps", "1"),
  };
  await relay(tellAndEcho, async (program, service) => {
    for (const round of [0, 1]) {
      using client = await Stream.connect(program.listen.port);
      await client.send(v2(CLIENT, BALANCER));
      const seen = await client.line();
      assert.match(seen, /^192\.0\.2\.44:\d+$/);
      assert.equal(seen === show(CLIENT), round === 0);
      await client.finish();
      assert.equal(await client.end(), "closed");
    }
    assert.equal(service.clients.length, 2);
    assert.equal((await program.stop()).get("port_fallbacks"), 1);
  });
});

Deno.test("tcp relay: port 0 in the header gives an ephemeral one", async () => {
  await relay(tellAndEcho, async (program) => {
    using client = await Stream.connect(program.listen.port);
    await client.send(v2({ ip: CLIENT.ip, port: 0 }, BALANCER));
    assert.match(await client.line(), /^192\.0\.2\.44:[1-9]\d*$/);
  });
});

for (const listeners of [1, 4]) {
  Deno.test(`tcp relay: 200 connections at once, --listeners ${listeners}, every byte right`, async () => {
    await relay(tellAndEcho, async (program) => {
      const clients = Array.from({ length: 200 }, async (_, index) => {
        const source = { ip: `192.0.2.${1 + (index % 200)}`, port: 20_000 + index };
        using client = await Stream.connect(program.listen.port);
        const payload = noise(20_000 + (index * 977) % 90_000, index + 1);
        const sending = (async () => {
          await client.write(index % 2 === 0 ? v1(source, BALANCER) : v2(source, BALANCER));
          for (let at = 0; at < payload.length;) {
            const size = 1 + (payload[at] ?? 0) * 61;
            await client.write(payload.subarray(at, at + size));
            at += size;
          }
          await client.finish();
        })();
        assert.equal(await client.line(), show(source));
        assert.equal(sha256(await client.rest()), sha256(payload));
        await sending;
      });
      await within(Promise.all(clients), "end of all connections", 60_000);
      const counters = await program.stop();
      assert.equal(counters.get("accepted"), 200);
      assert.equal(counters.get("headers_v1"), 100);
      assert.equal(counters.get("headers_v2"), 100);
      assert.equal(counters.get("connected"), 200);
      assert.equal(counters.get("connections_active"), 0);
    }, ["--listeners", String(listeners)]);
  });
}

Deno.test("tcp relay: one bulk transfer does not starve a small exchange", async () => {
  await relay(tellAndEcho, async (program) => {
    using bulk = await Stream.connect(program.listen.port);
    await bulk.send(v2(CLIENT, BALANCER));
    await bulk.line();
    let stop = false;
    const chunk = noise(MEBIBYTE, 5);
    const pumping = (async () => {
      while (!stop) await bulk.write(chunk);
    })();
    const draining = (async () => {
      while (!stop) await bulk.read();
    })();
    try {
      for (let round = 0; round < 20; round++) {
        using small = await Stream.connect(program.listen.port);
        await small.send(v2({ ip: "192.0.2.45", port: 21_000 + round }, BALANCER), "ping");
        assert.equal(await small.line(), `192.0.2.45:${21_000 + round}`);
        assert.equal(text(await small.exactly(4)), "ping");
      }
    } finally {
      stop = true;
      bulk[Symbol.dispose]();
      await Promise.allSettled([pumping, draining]);
    }
  });
});

Deno.test("tcp relay: no upstream listens: the connection ends, the log shows it, the next works", async () => {
  await using program = await Program.start({ args: ["-4", "127.0.0.1:9"] });
  for (const header of [v2(CLIENT, BALANCER), v2Local()]) {
    using client = await Stream.connect(program.listen.port);
    await client.send(header);
    await client.end();
  }
  const event = await program.event("connect_failed");
  assert.match(event.error ?? "", /refused/i);
  assert.equal(event.upstream, "127.0.0.1:9");
  assert.equal((await program.stop()).get("connect_errors"), 2);
});

Deno.test("tcp relay: a service that never answers ends the connection after --connect-timeout", async () => {
  await using _network = await Network.silentHost("203.0.113.99");
  await using program = await Program.start({
    args: ["-4", "203.0.113.99:80", "--connect-timeout", "1"],
  });
  using client = await Stream.connect(program.listen.port);
  const begin = performance.now();
  await client.send(v2(CLIENT, BALANCER));
  await client.end();
  const took = performance.now() - begin;
  assert.ok(took > 900 && took < 5000, `${took} ms`);
  assert.match((await program.event("connect_failed")).message, /no answer within 1 s/);
  assert.equal((await program.stop()).get("connect_timeouts"), 1);
});

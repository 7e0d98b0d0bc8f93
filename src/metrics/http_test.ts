import assert from "node:assert/strict";
import { type Answering, HttpServer, parseHead, respond } from "./http.ts";

const HEADS: [head: string, asked: ReturnType<typeof parseHead>][] = [
  ["GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", { method: "GET", path: "/metrics", host: "x" }],
  ["GET / HTTP/1.1\r\nA: b\r\nhOST:[::1]:80\r\n\r\n", {
    method: "GET",
    path: "/",
    host: "[::1]:80",
  }],
  ["GET http://x:1/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", {
    method: "GET",
    path: "/",
    host: "x:1",
  }],
  ["HEAD /healthz?verbose HTTP/1.0\r\n\r\n", { method: "HEAD", path: "/healthz" }],
  ["GET http://127.0.0.1:9100/readyz HTTP/1.1\n\n", {
    method: "GET",
    path: "/readyz",
    host: "127.0.0.1:9100",
  }],
  ["GET http://127.0.0.1:9100 HTTP/1.1\r\n\r\n", 400],
  ["GET * HTTP/1.1\r\n\r\n", 400],
  ["POST /metrics HTTP/1.1\r\n\r\n", 405],
  ["PRI * HTTP/2.0\r\n\r\n", 405],
  ["GET /metrics\r\n\r\n", 400],
  ["\x16\x03\x01\r\n\r\n", 400],
  ["\r\n\r\n", 400],
  ["GET /metrics HTTP/1.1\r\nHost: x\r\n", 431],
];

for (const [head, asked] of HEADS) {
  Deno.test(`parseHead: ${JSON.stringify(head)}`, () => assert.deepEqual(parseHead(head), asked));
}

Deno.test("respond: HEAD has the length of the body, and no body", () => {
  const [get, head] = [
    respond({ status: 200, body: "ü" }, "GET"),
    respond({
      status: 200,
      body: "ü",
    }, "HEAD"),
  ];
  assert.match(get, /^HTTP\/1\.1 200 OK\r\n[^]*\r\ncontent-length: 2\r\n[^]*\r\n\r\nü$/);
  assert.equal(`${head}ü`, get);
  assert.match(respond({ status: 405, body: "" }, "GET"), /\r\nallow: GET, HEAD\r\n/);
});

/** A server for a test, and what went wrong in it. */
function serve(answering: Answering, most = 4) {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = listener.addr;
  const troubles: unknown[] = [];
  const told = (error: unknown) => troubles.push(error);
  const server = new HttpServer(listener, most, answering, { accept: told, answer: told });
  const connect = () => Deno.connect({ hostname: "127.0.0.1", port });
  const get = (path: string) => fetch(`http://127.0.0.1:${port}${path}`);
  return { server, connect, get, troubles, [Symbol.dispose]: () => server.close() };
}

async function rest(conn: Deno.Conn): Promise<string> {
  return await new Response(conn.readable).text();
}

Deno.test("HttpServer: answers what is asked, a request a connection", async () => {
  using served = serve(({ method, path }) => Promise.resolve({ status: 200, body: method + path }));
  for (let round = 0; round < 10; round++) {
    const response = await served.get("/one?two");
    assert.deepEqual([response.status, await response.text()], [200, "GET/one"]);
  }
  const conn = await served.connect();
  await conn.write(new TextEncoder().encode("GET / HTTP/1.1\r\n\r\nGET /again HTTP/1.1\r\n\r\n"));
  assert.match(await rest(conn), /connection: close\r\n\r\nGET\/$/);
});

Deno.test("HttpServer: a version 2 header before the request is skipped, however it is split", async () => {
  using server = serve(({ path }) => Promise.resolve({ status: 200, body: path }));
  // LOCAL with addresses that count for nothing, and an empty line among them.
  const signature = "\r\n\r\n\0\r\nQUIT\n";
  const request =
    `${signature}\x20\x11\0\x0cabcd\r\n\r\nabcdGET /readyz HTTP/1.1\r\nHost: x\r\n\r\n`;
  for (const cut of [0, 4, 11, 14, 15, 20, 28, 40]) {
    using conn = await server.connect();
    await conn.write(new TextEncoder().encode(request.slice(0, cut)));
    await new Promise((resolve) => setTimeout(resolve, 20));
    await conn.write(new TextEncoder().encode(request.slice(cut)));
    assert.match(
      await new Response(conn.readable).text(),
      /^HTTP\/1\.1 200 [^]*\/readyz$/,
      `${cut}`,
    );
  }
});

Deno.test("HttpServer: a failed answer is 500 and logged, and the next one is served", async () => {
  let defect = true;
  using served = serve(() => {
    if (defect) throw new Error("on purpose");
    return Promise.resolve({ status: 200, body: "well" });
  });
  const response = await served.get("/");
  assert.deepEqual([response.status, served.troubles.length], [500, 1]);
  await response.body?.cancel();
  defect = false;
  assert.equal(await (await served.get("/")).text(), "well");
});

Deno.test("HttpServer: connections that ask nothing give way to one that does", async () => {
  using served = serve(() => Promise.resolve({ status: 200, body: "well" }));
  const idle = await Promise.all(Array.from({ length: 20 }, served.connect));
  assert.equal(await (await served.get("/")).text(), "well");
  const begun = performance.now();
  // The first of them is gone already.
  assert.equal(await rest(idle[0] as Deno.Conn), "");
  assert.ok(performance.now() - begun < 2_000);
  for (const conn of idle.slice(1)) conn.close();
});

Deno.test("HttpServer: one that waits for its answer does not give way to those that ask nothing", async () => {
  const answer = Promise.withResolvers<void>();
  using served = serve(async ({ path }) => {
    if (path === "/slow") await answer.promise;
    return { status: 200, body: path };
  });
  const slow = served.get("/slow");
  await (await served.get("/first")).text();
  const idle = await Promise.all(Array.from({ length: 20 }, served.connect));
  await (await served.get("/last")).text();
  answer.resolve();
  assert.equal(await (await slow).text(), "/slow");
  for (const conn of idle) {
    try {
      conn.close();
    } catch {
      // It gave way.
    }
  }
});

Deno.test("HttpServer: a head that is too long is refused", async () => {
  using served = serve(() => Promise.resolve({ status: 200, body: "" }));
  const conn = await served.connect();
  await conn.write(new TextEncoder().encode(`GET / HTTP/1.1\r\nX: ${"x".repeat(9_000)}`));
  await conn.closeWrite();
  assert.match(await rest(conn), /^HTTP\/1\.1 431 /);
});

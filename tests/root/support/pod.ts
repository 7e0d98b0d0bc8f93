/**
 * What runs in a pod instead of a real service and its clients: `serve <port>` tells every connection
 * whom it sees; `ask <port> <header>` sends a header and prints the answer, if any.
 */
const [action, port, header = ""] = Deno.args;
const address = { hostname: "127.0.0.1", port: Number(port) };

if (action === "serve") {
  for await (const connection of Deno.listen(address)) {
    const { hostname, port } = connection.remoteAddr;
    await connection.write(new TextEncoder().encode(`${hostname}:${port}\n`));
    connection.close();
  }
} else {
  const connection = await Deno.connect(address);
  await connection.write(new TextEncoder().encode(`${header}\r\n`));
  try {
    await connection.readable.pipeTo(Deno.stdout.writable);
  } catch (error) {
    if (!(error instanceof Deno.errors.ConnectionReset)) throw error;
  }
}

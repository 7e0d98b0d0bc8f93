/** Addresses as text, and ports that nobody else uses. */

/** An IP address without brackets, and a port. */
export interface Endpoint {
  ip: string;
  port: number;
}

/** `192.0.2.1:80` or `[2001:db8::1]:80`. */
export function show({ ip, port }: Endpoint): string {
  return ip.includes(":") ? `[${ip}]:${port}` : `${ip}:${port}`;
}

/**
 * A port that is free for TCP and UDP on every address, below the range from which the kernel gives
 * ports to clients: nothing takes it before the caller does.
 */
export function freePort(): number {
  for (let attempt = 0; attempt < 100; attempt++) {
    const port = 10_000 + Math.floor(Math.random() * 20_000);
    if (isFree(port)) return port;
  }
  throw new Error("Found no free port in 100 attempts");
}

function isFree(port: number): boolean {
  if (socketsOf(port).length > 0) return false;
  try {
    Deno.listen({ hostname: "::", port }).close();
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.AddrInUse) return false;
    throw error;
  }
}

/** One line of the kernel's socket tables. */
export interface SocketRow {
  table: "tcp" | "tcp6" | "udp" | "udp6";
  localPort: number;
  remotePort: number;
  /** The kernel's number: 1 established, 2 SYN sent, 6 TIME_WAIT, 10 listening. */
  state: number;
}

/** Every socket of this thread's network namespace that has `port` at either end. */
export function socketsOf(port: number): SocketRow[] {
  const rows: SocketRow[] = [];
  for (const table of ["tcp", "tcp6", "udp", "udp6"] as const) {
    for (
      const line of Deno.readTextFileSync(`/proc/thread-self/net/${table}`).split("\n").slice(1)
    ) {
      const [, local, remote, state] = line.trim().split(/\s+/);
      if (local === undefined || remote === undefined || state === undefined) continue;
      const row = {
        table,
        localPort: portOf(local),
        remotePort: portOf(remote),
        state: parseInt(state, 16),
      };
      if (row.localPort === port || row.remotePort === port) rows.push(row);
    }
  }
  return rows;
}

/** Whether a socket listens on this TCP port. */
export function tcpListens(port: number): boolean {
  const LISTENING = 10;
  return socketsOf(port).some((row) => row.localPort === port && row.state === LISTENING);
}

function portOf(field: string): number {
  return parseInt(field.slice(field.lastIndexOf(":") + 1), 16);
}

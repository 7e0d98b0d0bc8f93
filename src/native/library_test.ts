import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { EVENT, LISTENER, PORT, PROBE, PROXY_CONFIG, Status } from "./layout.ts";
import { LibraryError, libraryPlaces, loadLibrary, NativeError } from "./library.ts";
import { symbols } from "./symbols.ts";

const BUILT = fileURLToPath(new URL("../../target/release/libmmproxy.so", import.meta.url));
const NO_HANDLE = 4_000_000_000;

/** Loaded once: the native core stays for the life of the process. */
const library = loadLibrary(["/nowhere/libmmproxy.so", BUILT]);

/** Runs `test` in a folder of its own, which is gone afterwards. */
async function inFolder(test: (folder: string) => void | Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir({ prefix: "mmproxy-library-" });
  try {
    await test(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

function refusalOf(places: readonly string[]): string {
  try {
    loadLibrary(places);
  } catch (error) {
    assert(error instanceof LibraryError);
    return error.message;
  }
  return assert.fail(`One of ${places.join(", ")} is taken`);
}

function nativeErrorOf(call: () => unknown): NativeError {
  try {
    call();
  } catch (error) {
    assert(error instanceof NativeError);
    return error;
  }
  return assert.fail("The native core takes it");
}

Deno.test("libraryPlaces: a release's library comes before the one that was built", () => {
  assert.deepEqual(libraryPlaces(new URL("file:///opt/the%20app/")), [
    `/opt/the app/libmmproxy-${Deno.build.arch}.so`,
    "/opt/the app/target/release/libmmproxy.so",
  ]);
});

Deno.test("loadLibrary: takes the first library that fits", () => {
  assert.equal(library.path, BUILT);
});

Deno.test("loadLibrary: names every place, and the command that builds", () => {
  assert.equal(
    refusalOf(["/nowhere/a.so", "/nowhere/b.so"]),
    "Cannot load the native core: tried /nowhere/a.so (no such file), " +
      "/nowhere/b.so (no such file); build it with: deno task build",
  );
});

Deno.test("loadLibrary: the library has nothing of what prints its description", async () => {
  const library = new TextDecoder("latin1").decode(await Deno.readFile(BUILT));
  assert(library.includes("abi_version"), "the exports' names are in it");
  const layout = await Deno.readTextFile(new URL("layout.ts", import.meta.url));
  const symbols = await Deno.readTextFile(new URL("symbols.ts", import.meta.url));
  for (const text of ["export const ", "Byte offsets of a ", "as const satisfies"]) {
    assert(`${layout}${symbols}`.includes(text), text);
    assert(!library.includes(text), text);
  }
});

Deno.test("loadLibrary: reports in one line that a file is not a library", async () => {
  await inFolder(async (folder) => {
    const path = `${folder}/libmmproxy.so`;
    await Deno.writeTextFile(path, "no library\n");
    const message = refusalOf([path]);
    assert(message.startsWith(`Cannot load the native core: tried ${path} (`), message);
    assert(message.endsWith("); build it with: deno task build"), message);
    assert.doesNotMatch(message, /no such file|\n/);
  });
});

Deno.test("loadLibrary: refuses a library without our functions", () => {
  assert.match(refusalOf(["libc.so.6"]), /tried libc\.so\.6 \(.*undefined symbol.*\); build it/);
});

Deno.test("loadLibrary: refuses a library with another version's layout", async () => {
  await inFolder(async (folder) => {
    const path = `${folder}/libmmproxy.so`;
    const exports = Object.keys(symbols).map((name) =>
      `#[no_mangle] pub extern "C" fn ${name}() -> u32 { 1 }`
    );
    await Deno.writeTextFile(`${folder}/other.rs`, exports.join("\n"));
    const { success } = await new Deno.Command("rustc", {
      args: ["--crate-type", "cdylib", "-o", path, `${folder}/other.rs`],
    }).output();
    assert(success);
    assert.equal(
      refusalOf([path]),
      `Cannot load the native core: tried ${path} (built from another version of this program); ` +
        "build it with: deno task build",
    );
  });
});

for (const size of [0, 1, 64 << 10, (64 << 10) + 1, 200_001]) {
  Deno.test(`readFile: a file of ${size} bytes is whole`, async () => {
    await inFolder(async (folder) => {
      const content = Uint8Array.from({ length: size }, (_, index) => index % 251);
      await Deno.writeFile(`${folder}/a file, ü`, content);
      const read = library.readFile(`${folder}/a file, ü`);
      // Not deepEqual, whose account of two long arrays takes minutes.
      assert.equal(read.length, size);
      assert(read.every((byte, index) => byte === content[index]));
    });
  });
}

Deno.test("notify, watchdogMilliseconds: without a service manager there are no notifications", () => {
  Deno.env.delete("NOTIFY_SOCKET");
  Deno.env.delete("WATCHDOG_USEC");
  assert.equal(library.notify("READY=1"), false);
  assert.equal(library.watchdogMilliseconds(), 0);
});

Deno.test("watchdogMilliseconds: the interval is this process's, or nobody's", () => {
  const of = (pid: number) => {
    Deno.env.set("WATCHDOG_USEC", "1500001");
    Deno.env.set("WATCHDOG_PID", String(pid));
    return library.watchdogMilliseconds();
  };
  try {
    assert.equal(of(Deno.pid), 1501);
    assert.equal(of(Deno.ppid), 0, "inherited from a parent");
    Deno.env.delete("WATCHDOG_PID");
    assert.equal(library.watchdogMilliseconds(), 1501);
  } finally {
    Deno.env.delete("WATCHDOG_USEC");
    Deno.env.delete("WATCHDOG_PID");
  }
});

Deno.test("notify: names a socket that is not there", () => {
  Deno.env.set("NOTIFY_SOCKET", "/nowhere/notify");
  try {
    const { status, message } = nativeErrorOf(() => library.notify("READY=1"));
    assert.equal(status, Status.system);
    assert.match(message, /^Cannot notify \/nowhere\/notify: .*[^.]$/);
  } finally {
    Deno.env.delete("NOTIFY_SOCKET");
  }
});

Deno.test("readFile: names a file that is not there", () => {
  const error = nativeErrorOf(() => library.readFile("/nowhere/subnets"));
  assert.equal(error.status, Status.system);
  assert.match(error.message, /^Cannot read \/nowhere\/subnets: .*[^.]$/);
});

for (const size of [0, PROXY_CONFIG.size - 1, PROXY_CONFIG.size, 2 * PROXY_CONFIG.size]) {
  Deno.test(`openProxy: refuses ${size} bytes that are no configuration`, () => {
    const error = nativeErrorOf(() => library.openProxy(new Uint8Array(size)));
    assert.equal(error.status, Status.invalid);
    assert.notEqual(error.message, "");
  });
}

const ONE_PORT = new Uint8Array(PORT.size);

const CALLS: readonly (readonly [name: string, call: () => unknown])[] = [
  ["openWorker", () => library.openWorker(NO_HANDLE)],
  [
    "configure",
    () => {
      const listeners = new Uint8Array(LISTENER.size);
      new DataView(listeners.buffer).setUint32(LISTENER.ports, 1, true);
      library.configure(
        NO_HANDLE,
        { listeners, ports: ONE_PORT, rules: new Uint8Array(), destinations: new Uint8Array() },
        { flows: 1, connections: 1, pipes: 0 },
        0,
      );
    },
  ],
  ["isListenerInUse", () => library.isListenerInUse(NO_HANDLE, 1, 1, 1)],
  ["stop", () => library.stop(NO_HANDLE, 0)],
  ["nextAccess", () => library.nextAccess(NO_HANDLE, new Uint8Array(8))],
  ["stats", () => library.stats(NO_HANDLE)],
];

for (const [name, call] of CALLS) {
  Deno.test(`${name}: refuses a handle that there is not, and names it`, () => {
    const { status, message } = nativeErrorOf(call);
    assert.deepEqual([status, message], [Status.invalid, `there is no handle ${NO_HANDLE}`]);
  });
}

Deno.test("nextEvents: refuses a handle that there is not", async () => {
  await assert.rejects(library.nextEvents(NO_HANDLE, new Uint8Array(EVENT.size), 0), {
    name: "NativeError",
    status: Status.invalid,
  });
});

Deno.test("probe: refuses bytes that are no request", async () => {
  for (const size of [0, PROBE.size - 1, PROBE.size]) {
    await assert.rejects(library.probe(new Uint8Array(size), new Uint8Array()), {
      name: "NativeError",
      status: Status.invalid,
    });
  }
});

Deno.test("raiseFileLimit: gives the limit in force, each time the same", () => {
  const limit = library.raiseFileLimit();
  assert(limit > 0);
  assert.equal(library.raiseFileLimit(), limit);
});

/**
 * Container images made on this machine, from Debian's packages and its own toolchain: nothing comes from
 * a registry of images. They live in a storage of their own, which is removed at the end.
 */
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import config from "../../../deno.json" with { type: "json" };
import { step } from "../../../deploy/release.ts";
import { blocksOf } from "../../e2e/support/page.ts";
import { installed, runTool, Scratch } from "../../e2e/support/real_peers.ts";

const ROOT = join(dirname(fileURLToPath(import.meta.url)), "../../..");
/** Where run.ts reports the tests of the storage. */
const VARIABLE = "MMPROXY_IMAGES";
const MINUTES = 60_000;
/** Small machines have no more than these limits to give. */
export const LIMITS = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"];

/** Names of the images. */
export const Image = {
  /** What the first command of docs/containers.md makes. */
  mmproxy: `ghcr.io/mmproxy/mmproxy:${config.version}`,
  /** A Debian with systemd, rpm, a C compiler and Rust. */
  machine: "localhost/machine",
  /** Deno alone. */
  deno: "localhost/deno",
  /** A C library alone. */
  base: "localhost/base",
} as const;

const TOOLS = ["debootstrap", "buildah", "podman", "runc", "rustc"] as const;
/** What there must be, as realPeerTest takes it. */
export const NEEDS: Record<string, unknown> = Object.fromEntries(
  TOOLS.map((tool) => [tool, installed(tool)]),
);

/** What `mmproxy` and Deno are linked with. */
const LIBRARIES = ["c", "m", "dl", "pthread", "rt", "gcc_s"];

/** The arguments by which buildah and podman find the images that run.ts has made. */
export function storage(): string[] {
  const path = Deno.env.get(VARIABLE);
  if (path === undefined) throw new Error("There are no images: start the tests with run.ts");
  return ["--root", `${path}/storage`, "--runroot", `${path}/run`, "--storage-driver", "overlay"];
}

/** Runs buildah on the images, in the repository; what it printed. */
export async function buildah(command: string, ...args: string[]): Promise<string> {
  const said = await runTool("sh", [
    ...["-ec", 'cd "$1"; shift; exec buildah "$@"', "sh", ROOT],
    ...[...storage(), command, ...args],
  ], 5 * MINUTES);
  return said.trim();
}

/** The storage of the images, gone at the end. */
export class Images implements AsyncDisposable {
  private constructor(readonly path: string) {}

  /** Makes all of them; `undefined` where a tool is missing. */
  static async make(): Promise<Images | undefined> {
    if (TOOLS.some((tool) => NEEDS[tool] === undefined)) return undefined;
    const images = new Images(await Deno.makeTempDir({ prefix: "mmproxy-images-" }));
    Deno.env.set(VARIABLE, images.path);
    try {
      step("Image of a machine: Debian with systemd, Rust and a C compiler, by debootstrap");
      await images.#machine();
      step("Images of Deno and of a C library");
      await images.#deno();
      await images.#base();
      step("Image of mmproxy, as docs/containers.md builds it");
      await images.#mmproxy();
      step("Tests");
    } catch (error) {
      await images[Symbol.asyncDispose]();
      throw error;
    }
    return images;
  }

  async #machine(): Promise<void> {
    await this.#fill(Image.machine, async (root) => {
      const packages = "systemd,systemd-sysv,gcc,libc6-dev,libcap2-bin,ca-certificates,rpm";
      await runTool(
        "debootstrap",
        ["--variant=minbase", `--include=${packages}`, "bookworm", root],
        5 * MINUTES,
      );
      const toolchain = (await runTool("rustc", ["--print", "sysroot"])).trim();
      const script = `cp -a $1/bin/rustc $1/bin/cargo $2/bin/
        cp -a $1/lib/*.so* $2/lib/
        mkdir -p $2/lib/rustlib
        cp -a $1/lib/rustlib/*-unknown-linux-gnu $2/lib/rustlib/`;
      await runTool("sh", ["-ec", script, "sh", toolchain, `${root}/usr/local`], 2 * MINUTES);
      // A machine behind a proxy trusts authorities of its own; the build reaches the same registries.
      const authorities = "/etc/ssl/certs/ca-certificates.crt";
      await Deno.copyFile(authorities, root + authorities);
      return ["--env", "DENO_TLS_CA_STORE=system"];
    });
  }

  async #deno(): Promise<void> {
    await this.#fill(Image.deno, async (root) => {
      await Deno.copyFile(Deno.execPath(), `${root}/deno`);
      return [];
    });
  }

  async #base(): Promise<void> {
    await this.#fill(Image.base, async (root) => {
      const source = "/lib/$(uname -m)-linux-gnu";
      const script = `mkdir -p $1${source} $1/lib64 $1/etc
        for name in ${LIBRARIES.join(" ")}; do cp -L ${source}/lib$name.so.? $1${source}/; done
        for loader in /lib*/ld-linux-*.so.*; do cp -L $loader $1$loader; done
        mkdir -m 1777 $1/tmp`;
      await runTool("sh", ["-ec", script, "sh", root]);
      return [];
    });
  }

  async #mmproxy(): Promise<void> {
    const [build = ""] = await blocksOf("docs/containers.md");
    await using docker = await Docker.make();
    await docker.run(ROOT, build, 5 * MINUTES);
  }

  /** Makes an image of what `fill` puts into a folder; `fill` returns arguments of `buildah config`. */
  async #fill(image: string, fill: (root: string) => Promise<string[]>): Promise<void> {
    const container = await buildah("from", "scratch");
    const settings = await fill(await buildah("mount", container));
    if (settings.length > 0) await buildah("config", ...settings, container);
    await buildah("commit", "--quiet", "--disable-compression", container, image);
    await buildah("rm", container);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await runTool("podman", [...storage(), "rm", "--all", "--force"]);
    await buildah("rm", "--all");
    await Deno.remove(this.path, { recursive: true });
  }
}

/**
 * A `docker` that understands the commands of the pages: podman and buildah, on these images. Where the
 * Dockerfile has base images of registries it takes those that were made here.
 */
export class Docker implements AsyncDisposable {
  private constructor(readonly scratch: Scratch) {}

  static async make(): Promise<Docker> {
    const docker = new Docker(await Scratch.make());
    const bases = [["RUST", Image.machine], ["DENO", Image.deno], ["BASE", Image.base]]
      .map(([name, image]) => `--build-arg ${name}_IMAGE=${image}`);
    const build = "bud --isolation chroot --layers=false --format docker";
    const script = `#!/bin/sh
storage='${storage().join(" ")}'
podman="podman $storage --runtime runc --cgroup-manager cgroupfs"
case $1 in
  build) shift; exec buildah $storage ${build} ${bases.join(" ")} "$@" ;;
  run) shift; exec $podman run ${LIMITS.join(" ")} "$@" ;;
  *) exec $podman "$@" ;;
esac
`;
    await Deno.chmod(await docker.scratch.write("docker", script), 0o755);
    return docker;
  }

  /** Runs commands of a page in a folder; what they printed. */
  async run(folder: string, commands: string, ms = MINUTES): Promise<string> {
    const script = 'PATH=$1:$PATH; cd "$2"; eval "$3"';
    return await runTool("sh", ["-ec", script, "sh", this.scratch.path, folder, commands], ms);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.scratch[Symbol.asyncDispose]();
  }
}

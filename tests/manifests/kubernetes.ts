/** Manifests against the schemas of Kubernetes, by the Python package kubernetes-validate. */
import { installed, runTool, Scratch } from "../e2e/support/real_peers.ts";

const VALIDATOR = "kubernetes-validate==1.37.0";
/** The oldest that is still looked after, and a new one. */
export const VERSIONS = ["1.33", "1.37"];
/** What there must be, as realPeerTest takes it. */
export const NEEDS = { python3: installed("python3"), pip3: installed("pip3") };

/** The validator, which pip fetches, in a folder that is removed at the end. */
export class Validator implements AsyncDisposable {
  private constructor(readonly scratch: Scratch) {}

  static async make(): Promise<Validator> {
    const scratch = await Scratch.make();
    const install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"];
    await runTool(
      "python3",
      [...install, "--target", `${scratch.path}/packages`, VALIDATOR],
      120_000,
    );
    return new Validator(scratch);
  }

  /** What is wrong with the files; undefined if nothing is. */
  async reject(version: string, ...files: string[]): Promise<string | undefined> {
    const { success, stdout, stderr } = await new Deno.Command("python3", {
      args: ["-m", "kubernetes_validate", "--strict", "-k", version, ...files],
      env: { PYTHONPATH: `${this.scratch.path}/packages` },
    }).output();
    const said = [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes)).join("");
    return success ? undefined : said;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.scratch[Symbol.asyncDispose]();
  }
}

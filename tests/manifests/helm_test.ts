/** The Helm chart: linted, and what its values change. manifests_test.ts has what the API takes. */
import assert from "node:assert/strict";
import { Ajv } from "ajv/dist/ajv.js";
import { parse as parseToml } from "smol-toml";
import { parseAllDocuments } from "yaml";
import { realPeerTest, runTool } from "../e2e/support/real_peers.ts";
import { CHART, HELM, render } from "./chart.ts";
import { VERSIONS } from "./kubernetes.ts";

const SCHEMA = new URL("../../docs/mmproxy.schema.json", import.meta.url);

interface Rendered {
  readonly kind: string;
  readonly data: Record<string, string>;
  readonly spec: {
    readonly template: {
      readonly spec: {
        readonly initContainers?: readonly unknown[];
        readonly containers: readonly {
          readonly image: string;
          readonly args: readonly string[];
          readonly securityContext: { readonly capabilities: { readonly add: readonly string[] } };
          readonly readinessProbe?: unknown;
        }[];
      };
    };
  };
}

function documents(text: string): Rendered[] {
  return parseAllDocuments(text).map((document) => document.toJS());
}

realPeerTest("helm: the chart has no mistakes", HELM, async () => {
  await runTool("helm", ["lint", "--strict", "--kube-version", VERSIONS[0] ?? "", CHART]);
});

realPeerTest("helm: values change what they name, and wrong ones are refused", HELM, async () => {
  const [config, set] = documents(await render());
  const validate = new Ajv({ strict: true, allowUnionTypes: true }).compile(
    JSON.parse(await Deno.readTextFile(SCHEMA)),
  );
  const text = config?.data["mmproxy.toml"] ?? "";
  assert.ok(validate(JSON.parse(JSON.stringify(parseToml(text)))), JSON.stringify(validate.errors));
  assert.equal(set?.kind, "DaemonSet");
  assert.equal(set?.spec.template.spec.initContainers?.length, 1);

  const [proxy] = set?.spec.template.spec.containers ?? [];
  assert.ok(proxy?.args.includes("--metrics-addr=$(NODE_IP):9911"), proxy?.args.join(" "));
  assert.deepEqual(proxy?.securityContext.capabilities.add, ["NET_RAW"]);
  const [, low] = documents(await render("--set", "lowPorts=true,metrics.address=[$(NODE_IP)]"));
  const [lowPorts] = low?.spec.template.spec.containers ?? [];
  assert.deepEqual(lowPorts?.securityContext.capabilities.add, ["NET_RAW", "NET_BIND_SERVICE"]);
  assert.ok(lowPorts?.args.includes("--metrics-addr=[$(NODE_IP)]:9911"));

  const [, bare] = documents(
    await render("--set", "routes.enabled=false,metrics.enabled=false,image.tag=1.2.3"),
  );
  assert.equal(bare?.spec.template.spec.initContainers, undefined);
  const [container] = bare?.spec.template.spec.containers ?? [];
  assert.match(container?.image ?? "", /:1\.2\.3$/);
  assert.equal(container?.readinessProbe, undefined);

  for (
    const [values, words] of [
      ["drainTimeout=60", /must exceed shutdownDelay and drainTimeout together, 65/],
      ["metrics.prot=1", /'prot' not allowed/],
      ["metrics.address=localhost", /'\/metrics\/address'/],
      ["config=workers = 1", /'\/config'/],
      ["drainTimeout=-1", /'\/drainTimeout'/],
    ] as const
  ) {
    await assert.rejects(render("--set", values), words, values);
  }
});

/** The Helm chart, rendered. */
import { fileURLToPath } from "node:url";
import { installed, runTool } from "../e2e/support/real_peers.ts";
import { VERSIONS } from "./kubernetes.ts";

/** What there must be, as realPeerTest takes it. */
export const HELM = { helm: installed("helm") };

/** The chart's folder. */
export const CHART = fileURLToPath(new URL("../../deploy/helm", import.meta.url));

/** Sets of values, and what they must make of the chart. */
export const VALUES = [
  [],
  ["--set", "metrics.enabled=false"],
  ["--set", "routes.enabled=false"],
  ["--set", "lowPorts=true,image.tag=1.2.3,priorityClassName=system-node-critical"],
  [
    ...["--set", "resources.limits.memory=256Mi", "--set", "nodeSelector.edge=yes"],
    ...["--set", "tolerations[0].operator=Exists", "--set", "podAnnotations.a=b"],
    ...["--set", "imagePullSecrets[0].name=registry", "--set", "podLabels.team=edge"],
  ],
];

/** What the chart makes of these values. */
export async function render(...values: string[]): Promise<string> {
  const version = ["--kube-version", VERSIONS[0] ?? ""];
  return await runTool("helm", ["template", "edge", CHART, ...version, ...values]);
}

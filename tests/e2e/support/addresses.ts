/** Addresses of the namespace's loopback interface. */

/** Gives the loopback interface one more address, unless it has it. */
export async function addAddress(prefix: string): Promise<void> {
  const { success, stderr } = await new Deno.Command("ip", {
    args: ["address", "replace", prefix, "dev", "lo"],
  }).output();
  if (success) return;
  throw new Error(`Could not add ${prefix}: ${new TextDecoder().decode(stderr)}`);
}

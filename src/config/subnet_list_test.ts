import assert from "node:assert/strict";
import { parseSubnetList } from "./subnet_list.ts";

Deno.test("parseSubnetList: names behind the subnets are comments, as in go-mmproxy's files", () => {
  const { subnets, wrong } = parseSubnetList(
    "# load balancers\n192.0.2.1/32 # lb-1, Frankfurt\n\n198.51.100.0/24\t#lb-2\r\n2001:db8::/32# lb-3",
  );
  assert.deepEqual(subnets.map(({ text }) => text), [
    "192.0.2.1/32",
    "198.51.100.0/24",
    "2001:db8::/32",
  ]);
  assert.deepEqual(wrong, []);
});

Deno.test("parseSubnetList: names every wrong line, and keeps what is right", () => {
  const { subnets, wrong } = parseSubnetList("lb-1 192.0.2.1\n192.0.2.2\n10.0.0.1/8 # x\n");
  assert.deepEqual(subnets.map(({ text }) => text), ["192.0.2.2"]);
  assert.deepEqual(wrong, [
    {
      line: 1,
      entry: "lb-1 192.0.2.1",
      problem: "is not an IP address or subnet, for example 192.0.2.0/24",
    },
    {
      line: 3,
      entry: "10.0.0.1/8",
      problem: "has host bits set: the subnet is 10.0.0.0/8",
    },
  ]);
});

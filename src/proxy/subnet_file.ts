/** The allowed-subnets file, read through the native core. */
import { parseSubnets, SubnetsError } from "../config/subnets.ts";
import { type Library, NativeError } from "../native/library.ts";

/**
 * Reads the file.
 *
 * @returns `TrustRecord`s, one for each entry
 * @throws {SubnetsError | NativeError} when it cannot be read or says something wrong
 */
export function readSubnets(
  path: string,
  library: Pick<Library, "readFile">,
): Uint8Array<ArrayBuffer> {
  return parseSubnets(new TextDecoder().decode(library.readFile(path)), path);
}

/** Whether an error says what is wrong with the file. */
export function isSubnetsProblem(error: unknown): error is SubnetsError | NativeError {
  return error instanceof SubnetsError || error instanceof NativeError;
}

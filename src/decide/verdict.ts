/**
 * The region that a worker shares with its decoder: the header's bytes go in, the verdict comes out.
 *
 * Everything is created once; writing a verdict allocates nothing.
 */
import {
  Action,
  HEADER_OFFSET,
  MAX_HEADER,
  Refusal,
  SCRATCH_SIZE,
  VERDICT,
} from "../native/layout.ts";

/** One of the codes that the decoder returns. */
export type ActionCode = (typeof Action)[keyof typeof Action];

/** One of the reasons to refuse. */
export type RefusalCode = (typeof Refusal)[keyof typeof Refusal];

/** Where one of the record's two addresses starts. */
export type AddressField = typeof VERDICT.client_address | typeof VERDICT.destination_address;

/** A header's bytes and the verdict on it. */
export class Verdict {
  /** The header: its first byte is at 0. Longer than any header by one byte. */
  readonly header: Uint8Array<ArrayBuffer>;
  readonly #record: Uint8Array<ArrayBuffer>;
  readonly #ports: Uint16Array<ArrayBuffer>;

  /**
   * @param region the scratch region, `SCRATCH_SIZE` bytes
   * @throws {RangeError} if the region is smaller
   */
  constructor(region: ArrayBuffer) {
    if (region.byteLength < SCRATCH_SIZE) {
      throw new RangeError(`A scratch region has ${SCRATCH_SIZE} bytes, not ${region.byteLength}`);
    }
    this.header = new Uint8Array(region, HEADER_OFFSET, MAX_HEADER + 1);
    this.#record = new Uint8Array(region, 0, VERDICT.size);
    this.#ports = new Uint16Array(region, VERDICT.client_port, 2);
  }

  /** The header is refused for this reason. */
  refuse(reason: RefusalCode): ActionCode {
    this.#record[VERDICT.refusal] = reason;
    return Action.drop;
  }

  /**
   * The header is refused for the client that it names, whose address was written before: the log says
   * whom.
   *
   * @param family 4 or 6
   * @param clientPort 0 to 65,535
   */
  refuseClient(reason: RefusalCode, family: number, clientPort: number): ActionCode {
    this.#record[VERDICT.family] = family;
    this.#ports[0] = clientPort;
    return this.refuse(reason);
  }

  /** The service is to be reached from the proxy's own address. */
  own(version: number): ActionCode {
    this.#record[VERDICT.refusal] = Refusal.none;
    this.#record[VERDICT.version] = version;
    this.#record[VERDICT.family] = 0;
    return Action.own;
  }

  /** Writes one byte of an address, network byte order. */
  setByte(field: AddressField, index: number, value: number): void {
    this.#record[field + index] = value;
  }

  /** Reads one byte of an address, network byte order. */
  byte(field: AddressField, index: number): number {
    return this.#record[field + index] as number;
  }

  /**
   * The service is to be reached from the client, whose address was written before.
   *
   * @param family 4 or 6
   * @param version 1, 2, or 3 for the Simple Proxy Protocol; 0 without a header
   * @param clientPort 0 to 65,535
   * @param destinationPort 0 to 65,535
   */
  client(
    family: number,
    version: number,
    clientPort: number,
    destinationPort: number,
  ): ActionCode {
    this.#record[VERDICT.refusal] = Refusal.none;
    this.#record[VERDICT.family] = family;
    this.#record[VERDICT.version] = version;
    this.#ports[0] = clientPort;
    this.#ports[(VERDICT.destination_port - VERDICT.client_port) / 2] = destinationPort;
    return Action.client;
  }
}

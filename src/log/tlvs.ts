/**
 * The TLVs of a version 2 header: those of proxy-protocol.txt, section 2.2, and those of AWS, Azure and Google. They are
 * read only for the access log, after the header was accepted.
 *
 * Every value is untrusted: text is shown only where it is printable UTF-8, all else as hexadecimal.
 */

/** TLVs as the fields of a log line; those that the header does not have are left out. */
export interface Tlvs {
  /** The application protocol, as `h2`. */
  readonly alpn?: string;
  /** The host name that the client requested (SNI). */
  readonly authority?: string;
  readonly unique_id?: string;
  readonly netns?: string;
  readonly tls?: TlsTlvs;
  /** The VPC endpoint's id, as `vpce-08d2bf15fac5001c9`. */
  readonly aws_vpc_endpoint?: string;
  /** The private endpoint's link id, 32 bits. */
  readonly azure_private_endpoint?: number;
  /** The Private Service Connect connection's id, 64 bits in decimal. */
  readonly gcp_psc_connection?: string;
  /** All others, by type (`0xf0`), in the order in which they came. */
  readonly other_tlvs?: Readonly<Record<string, string>>;
}

/** The content of the SSL TLV: the client's connection to the load balancer. */
export interface TlsTlvs {
  readonly version?: string;
  readonly cipher?: string;
  /** The common name of the client's certificate. */
  readonly cn?: string;
  readonly signature_algorithm?: string;
  readonly key_algorithm?: string;
  readonly group?: string;
  readonly signature_scheme?: string;
  /** The client's certificate, DER in Base64. */
  readonly client_certificate?: string;
  /** Whether the client's certificate was verified; absent if it sent none. */
  readonly client_verified?: boolean;
  readonly other_tlvs?: Readonly<Record<string, string>>;
}

const SIGNATURE_LENGTH = 12;
const FIXED = 16;
const TLV_HEAD = 3;
/** Bytes of the addresses, by the family's number: UNSPEC, IPv4, IPv6, unix. */
const ADDRESS_BYTES = [0, 12, 36, 216];
const COMMAND_PROXY = 1;
/** Client bits and the result of the verification precede the sub-TLVs. */
const SSL_HEAD = 5;
const CLIENT_CERT = 0x02 | 0x04;

/** The checksum and padding, which say nothing. */
const MUTE = new Set([0x03, 0x04]);

const TEXTS = new Map<number, "alpn" | "authority" | "netns">([
  [0x01, "alpn"],
  [0x02, "authority"],
  [0x30, "netns"],
]);
const TLS_TEXTS = new Map<number, keyof TlsTlvs & string>([
  [0x21, "version"],
  [0x22, "cn"],
  [0x23, "cipher"],
  [0x24, "signature_algorithm"],
  [0x25, "key_algorithm"],
  [0x26, "group"],
  [0x27, "signature_scheme"],
]);
const UNIQUE_ID = 0x05;
const SSL = 0x20;
const SSL_CLIENT_CERT = 0x28;
const GCP = 0xe0;
const AWS = 0xea;
const AZURE = 0xee;
/** The one sub-type that AWS and Azure have. */
const ENDPOINT_ID = 0x01;

/**
 * Reads a header's TLVs.
 *
 * @param header a version 2 header that the decoder has accepted, or its first bytes: what is cut off
 *   is left out. LOCAL headers and all others have none.
 */
export function readTlvs(header: Uint8Array): Tlvs {
  // LOCAL: its family and addresses say nothing, so nothing says where the TLVs start.
  if (header.length < FIXED || ((header[SIGNATURE_LENGTH] ?? 0) & 0x0f) !== COMMAND_PROXY) {
    return {};
  }
  const family = (header[SIGNATURE_LENGTH + 1] ?? 0) >> 4;
  const start = FIXED + (ADDRESS_BYTES[family] ?? header.length);
  const fields: Record<string, unknown> = {};
  const others: Record<string, string> = {};
  for (const [type, value] of walk(header.subarray(start))) {
    if (MUTE.has(type)) continue;
    const text = TEXTS.get(type);
    const known = text ? { [text]: printable(value) } : vendorField(type, value);
    if (known) Object.assign(fields, known);
    else others[hexType(type)] = printable(value);
  }
  return { ...fields, ...(Object.keys(others).length > 0 && { other_tlvs: others }) };
}

function vendorField(type: number, value: Uint8Array): Tlvs | undefined {
  const view = new DataView(value.buffer, value.byteOffset, value.byteLength);
  switch (type) {
    case UNIQUE_ID:
      return { unique_id: value.toHex() };
    case SSL:
      return value.length >= SSL_HEAD ? { tls: readTls(value) } : undefined;
    case GCP:
      return value.length === 8 ? { gcp_psc_connection: String(view.getBigUint64(0)) } : undefined;
    case AWS:
      return value[0] === ENDPOINT_ID
        ? { aws_vpc_endpoint: printable(value.subarray(1)) }
        : undefined;
    case AZURE:
      return value.length === 5 && value[0] === ENDPOINT_ID
        ? { azure_private_endpoint: view.getUint32(1, true) }
        : undefined;
    default:
      return undefined;
  }
}

function readTls(value: Uint8Array): TlsTlvs {
  const client = value[0] ?? 0;
  const verify = value.subarray(1, SSL_HEAD);
  const fields: Record<string, unknown> = {};
  const others: Record<string, string> = {};
  for (const [type, inner] of walk(value.subarray(SSL_HEAD))) {
    const text = TLS_TEXTS.get(type);
    if (text) fields[text] = printable(inner);
    else if (type === SSL_CLIENT_CERT) fields.client_certificate = inner.toBase64();
    else others[hexType(type)] = printable(inner);
  }
  return {
    ...fields,
    ...((client & CLIENT_CERT) !== 0 && { client_verified: verify.every((byte) => byte === 0) }),
    ...(Object.keys(others).length > 0 && { other_tlvs: others }),
  };
}

/** Type and value of each TLV, up to the end or to one that is cut off. */
function* walk(bytes: Uint8Array): Generator<[number, Uint8Array]> {
  for (let at = 0; at + TLV_HEAD <= bytes.length;) {
    const [type = 0, high = 0, low = 0] = bytes.subarray(at, at + TLV_HEAD);
    const start = at + TLV_HEAD;
    at = start + (high << 8 | low);
    // A TLV of the TLS connection is worth reading as far as it goes: it holds others.
    if (at > bytes.length && type !== SSL) return;
    yield [type, bytes.subarray(start, at)];
  }
}

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Text as it is, where it is text; anything else in hexadecimal, as `0x…`. */
function printable(value: Uint8Array): string {
  try {
    const text = utf8.decode(value);
    // Letters, numbers, punctuation, symbols and the plain space: no control or format characters.
    if (/^[\p{L}\p{M}\p{N}\p{P}\p{S} ]*$/u.test(text)) return text;
  } catch {
    // Not UTF-8.
  }
  return `0x${value.toHex()}`;
}

function hexType(type: number): string {
  return `0x${type.toString(16).padStart(2, "0")}`;
}

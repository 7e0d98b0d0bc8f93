/** The bounds of the configuration's numbers. */

/** The least and the greatest value. */
export type Bounds = readonly [least: number, most: number];

const MOST_SECONDS = 4_000_000;
const MOST_U32 = 0xffff_ffff;
/** A timer of JavaScript ends at 24 days. */
const LONGEST_TIMER_S = 86_400;
/** The PROXY protocol's specification has a receiver wait at least so long for a header (section 2). */
const LEAST_WAIT_S = 3;

export const BOUNDS = {
  workers: [1, 1024],
  mark: [0, MOST_U32],
  table: [1, MOST_U32],
  headerTimeout: [LEAST_WAIT_S, MOST_SECONDS],
  connectTimeout: [1, MOST_SECONDS],
  closeAfter: [1, MOST_SECONDS],
  /** The kernel's (tcp(7), TCP_KEEPIDLE). */
  keepalive: [0, 32_767],
  idleTimeout: [0, MOST_SECONDS],
  drainTimeout: [0, MOST_SECONDS],
  shutdownDelay: [0, LONGEST_TIMER_S],
  upgradeDrain: [0, LONGEST_TIMER_S],
  resolveInterval: [0, LONGEST_TIMER_S],
  optionalWait: [LEAST_WAIT_S, MOST_SECONDS],
  limit: [1, MOST_U32],
} as const satisfies Record<string, Bounds>;

/** Tables that the kernel itself uses (rt_tables, linux/rtnetlink.h): compat, default, main, local. */
export const KERNEL_TABLES = [252, 253, 254, 255];

/** The most bytes of a unix socket's path (unix(7): 108 with the one that ends it). */
export const MOST_SOCKET_PATH = 107;

/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * What the program at tc ingress and ffi/src/offload/record.rs share: the records of the two maps.
 * `be` is network byte order; everything else is the host's.
 */
#pragma once

#include <linux/types.h>

/* How far an entry is. Only user space writes it, but for OVER. */
enum {
	/* No connection. */
	FREE = 0,
	/* Packets go to the proxy's sockets; the interface that they came from is written down. */
	WATCHED = 1,
	/* Packets are translated: peer and service are one connection. */
	OFFLOADED = 2,
	/* A new connection has the same addresses and ports: packets go to the sockets again. */
	OVER = 3,
};

/* What was seen of one direction. */
enum {
	SAW_FIN = 1,
	SAW_RST = 2,
	/* The other direction had no FIN before. */
	SAW_FIRST_FIN = 4,
};

/* How a packet of one direction leaves. */
enum {
	/* It stays where it is: both ends are reached over this interface. */
	IN_PLACE = 0,
	/* To the ingress of `out_interface`, which is lo. */
	TO_LOOPBACK = 1,
	/* Out of `out_interface`, to the neighbour that the route names. */
	TO_NEIGHBOUR = 2,
};

/* Of a reference: its packets are those of the proxy's own socket, which go where those of the direction go. */
#define FROM_SOCKET 2

/* Twice that far ahead is still ahead, in arithmetic modulo 2^32. */
#define MOST_REACH (1u << 29)

/* A packet's addresses and ports. IPv4 has the first of the four words; the others are 0. */
struct tuple {
	__u32 source[4];	/* be */
	__u32 destination[4];	/* be */
	__u16 source_port;	/* be */
	__u16 destination_port;	/* be */
};

/* The value of a tuple. */
struct reference {
	__u32 entry;
	__u32 direction;	/* 0: from the peer to the service; 1: back; perhaps with FROM_SOCKET */
};

struct direction {
	struct tuple to;	/* what its packets have afterwards */
	__u32 out;
	__u32 out_interface;
	__u32 in_interface;	/* WATCHED: where its last packet came from; 0: none came */
	__u32 add_sequence;	/* modulo 2^32; the acknowledgement number gets the other direction's, negated */
	__s32 window_shift;	/* > 0: to the left */
	__u32 window_scale;	/* of the windows that its packets have, as they come */
	__u32 address_sum;	/* ones' complement: the new addresses minus the old ones */
	__u32 timestamp_base;	/* the clock of the socket that sent before, in ms, at `clock_at` */
	__u32 timestamp_add;
	__u32 timestamp_known;
	__u32 boundary;		/* while `draining`: behind what the proxy's sockets have had of it, as it leaves */
	__u32 seen;
	__u32 fin;		/* the sequence number behind the FIN, as it leaves */
	__u32 reach;		/* the largest window that its receiver has had, in bytes; at most MOST_REACH */
	__u32 window;		/* be, 16 bits: that of its receiver, as the sender has had it */
	__u64 acknowledged;	/* the receiver has everything before it, as it leaves; the low 32 bits are the number */
	__u64 sent;		/* the sender has sent nothing behind it, as it leaves; the low 32 bits are the number */
	__u64 clock_at;		/* CLOCK_MONOTONIC in ns; 0: the clock stands */
	__u64 last;		/* CLOCK_MONOTONIC in ns: its last packet, up to the FIN */
	__u64 heard;		/* CLOCK_MONOTONIC in ns: its last packet */
};

struct entry {
	__u32 state;
	/* 1: the proxy's sockets have sent bytes that the ends have not acknowledged yet. */
	__u32 draining;
	struct direction directions[2];
	/* User space's, for whoever adopts the entry: the mark of packets to the service, and what record.rs says. */
	__u32 mark;
	__u32 notes;
};

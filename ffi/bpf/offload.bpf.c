/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Makes two TCP connections one. It runs at tc ingress, before the network layer: where a packet belongs to
 * a connection that was offloaded, its addresses, ports, numbers, window and options become those of the
 * other connection, and it goes on to the other end. The proxy's two sockets are gone by then, or still send what
 * they had: for that it runs at tc egress as well.
 *
 * docs/decisions/0085-offload.md has the reasons; `deno task bpf` compiles it.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "offload.h"

/* Another program may follow at the same hook. */
#define NEXT -1
#define DROP 2 /* TC_ACT_SHOT */

/* On a copy that is for the proxy's socket (skb->tc_index): nobody else uses it at ingress. */
#define FOR_SOCKET 0x6d6d

#define MAX_HEADER 60
#define MAX_OPTIONS 40 /* RFC 9293 3.1: the header has at most 60 bytes */
#define TIMESTAMPS 8 /* RFC 7323 3.2 */
#define TIMESTAMPS_LENGTH 10
#define SACK 5 /* RFC 2018 3 */
/* NOP, NOP, timestamps: how Linux, Windows and the BSDs lay them out. */
#define PADDED_TIMESTAMPS 0x0101080a

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct tuple);
	__type(value, struct reference);
} tuples SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct entry);
} entries SEC(".maps");

/* The options of one packet, and what they are translated by. */
struct options {
	__u8 bytes[64]; /* more than MAX_OPTIONS, so that a masked index is inside */
	__u32 length;
	__u32 at;
	__u32 add_acknowledgement;
	__u32 timestamp_base;
	__u32 timestamp_add;
	__u32 timestamp_known;
	__u32 echo_add;
	__u32 echo_known;
};

/* Ones' complement: `sum` with `from` replaced by `to`, both as they lie in the packet (RFC 1624). */
static __always_inline __u32 replaced(__u32 sum, __u32 from, __u32 to)
{
	__u64 wide = (__u64)sum + (__u32)~from + to;

	wide = (__u32)wide + (wide >> 32);
	return (__u32)wide + (__u32)(wide >> 32);
}

/* A window in the scale of the other connection; never more than was offered. */
static __always_inline __u16 shifted(__u16 window, __s32 shift)
{
	__u32 wide = bpf_ntohs(window);

	if (shift >= 0) {
		wide <<= shift & 15;
		if (wide > 0xffff)
			wide = 0xffff;
	} else {
		wide >>= -shift & 15;
	}
	return bpf_htons(wide);
}

/* The clock of the packet's sender goes on where that of the proxy's socket is: the receiver drops what is older
 * than what it has had (RFC 7323 5).
 */
static __always_inline __u32 timestamp(struct options *o, __u32 value)
{
	if (!o->timestamp_known) {
		o->timestamp_add = o->timestamp_base - value;
		o->timestamp_known = 1;
	}
	return value + o->timestamp_add;
}

/* What is echoed is the other direction's clock. Before that has sent anything there is nothing to echo:
 * 0 stands for that, as in a SYN. */
static __always_inline __u32 echo(struct options *o, __u32 value)
{
	return o->echo_known ? value - o->echo_add : 0;
}

/* An index that the verifier knows to be inside of `bytes`. */
#define AT(index) ({ __u32 index_ = (index); asm volatile("%0 &= 63" : "+r"(index_)); &o->bytes[index_]; })

static __always_inline __u32 get(struct options *o, __u32 at)
{
	return (__u32)*AT(at) << 24 | (__u32)*AT(at + 1) << 16 | (__u32)*AT(at + 2) << 8 | *AT(at + 3);
}

static __always_inline void put(struct options *o, __u32 at, __u32 value)
{
	*AT(at) = value >> 24;
	*AT(at + 1) = value >> 16;
	*AT(at + 2) = value >> 8;
	*AT(at + 3) = value;
}

/* Translates the option at `at` and moves on; 0 at the end. Global, so that it is verified by itself. */
__noinline int translate_option(struct options *o)
{
	__u32 at, length;

	if (!o)
		return 0;
	at = o->at;
	if (at >= o->length || *AT(at) == 0)
		return 0;
	if (*AT(at) == 1) {
		o->at = at + 1;
		return 1;
	}
	length = *AT(at + 1);
	if (length < 2 || at + length > o->length)
		return 0;
	if (*AT(at) == TIMESTAMPS && length == TIMESTAMPS_LENGTH) {
		put(o, at + 2, timestamp(o, get(o, at + 2)));
		put(o, at + 6, echo(o, get(o, at + 6)));
	} else if (*AT(at) == SACK) {
		/* Numbers of what was received, as the acknowledgement's. At most four blocks fit. */
		for (__u32 edge = 2; edge < 34 && edge + 4 <= length; edge += 4)
			put(o, at + edge, get(o, at + edge) + o->add_acknowledgement);
	}
	o->at = at + length;
	return 1;
}

/* Where the parts of a packet begin, in bytes from its Ethernet header. */
struct layout {
	__u32 transport;
	__u32 payload; /* its length */
	__u32 ipv6;
};

/* The tuple of a TCP packet; 0 for everything else. */
static __always_inline int read_tuple(struct __sk_buff *skb, struct tuple *tuple, struct layout *layout)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *link = data;
	struct tcphdr *tcp;
	__u32 length;

	if ((void *)(link + 1) > end)
		return 0;
	if (link->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(link + 1);

		if ((void *)(ip + 1) > end || ip->protocol != IPPROTO_TCP || ip->ihl != 5)
			return 0;
		/* A fragment; "do not fragment" may be set. */
		if (ip->frag_off & bpf_htons(0x3fff))
			return 0;
		tuple->source[0] = ip->saddr;
		tuple->destination[0] = ip->daddr;
		length = bpf_ntohs(ip->tot_len);
		layout->transport = sizeof(*link) + sizeof(*ip);
		tcp = (void *)(ip + 1);
	} else if (link->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(link + 1);

		if ((void *)(ip + 1) > end || ip->nexthdr != IPPROTO_TCP)
			return 0;
		__builtin_memcpy(tuple->source, &ip->saddr, 16);
		__builtin_memcpy(tuple->destination, &ip->daddr, 16);
		length = ip->payload_len ? bpf_ntohs(ip->payload_len) + sizeof(*ip) : 0;
		layout->transport = sizeof(*link) + sizeof(*ip);
		layout->ipv6 = 1;
		tcp = (void *)(ip + 1);
	} else {
		return 0;
	}
	if ((void *)(tcp + 1) > end)
		return 0;
	tuple->source_port = tcp->source;
	tuple->destination_port = tcp->dest;
	/* A segment of more than 64 KiB that was put together has no length of its own (BIG TCP). */
	if (!length)
		length = skb->len - sizeof(*link);
	layout->payload = length + sizeof(*link) - layout->transport - tcp->doff * 4;
	return 1;
}

/* The TCP header; NULL where a helper has moved it out of what can be read directly. */
static __always_inline struct tcphdr *tcp_of(struct __sk_buff *skb, const struct layout *layout)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct tcphdr *tcp = data + sizeof(struct ethhdr) +
			     (layout->ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));

	return (void *)(tcp + 1) > end ? 0 : tcp;
}

/* How far a number is ahead of another; negative: behind. */
static __always_inline __s32 ahead(__u32 number, __u64 of)
{
	return number - (__u32)of;
}

/* Raises a count of 64 bits to a number, which its low half is to be; never backwards. */
static __always_inline void raise(__u64 *count, __u32 number)
{
	/* Another processor may have the other packet of a pair. */
	for (int attempt = 0; attempt < 4; attempt++) {
		__u64 before = *(volatile __u64 *)count;
		__s32 more = ahead(number, before);

		if (more <= 0 || __sync_val_compare_and_swap(count, before, before + more) == before)
			return;
	}
}

/*
 * Whether the numbers of a packet from `from` up to `upto` fit what both ends have sent and acknowledged, which
 * is what an end asks before it believes one (RFC 9293 3.10.7.4, RFC 5961 3.2 and 5.2). A packet with other
 * numbers may be forged. It is translated, so that the end can answer it, and changes nothing here.
 */
static __always_inline int is_credible(const struct tcphdr *tcp, const struct direction *d,
				       const struct direction *other, __u32 from, __u32 upto)
{
	__u32 number = bpf_ntohl(tcp->ack_seq);
	__s32 reach = d->reach, reach_back = other->reach;

	/* What the receiver waits for next; it may have more than it has acknowledged so far. */
	if (tcp->rst)
		return ahead(from, d->acknowledged) == 0 || ahead(from, d->sent) == 0;
	return tcp->ack && ahead(upto, d->acknowledged) >= -reach &&
	       ahead(upto, d->acknowledged) <= 2 * reach && ahead(number, other->sent) <= 0 &&
	       ahead(number, other->acknowledged) >= -reach_back;
}

/* Notes what a credible packet says. */
static __always_inline void note(const struct tcphdr *tcp, struct direction *d, struct direction *other,
				 __u32 upto)
{
	__u32 window = (__u32)bpf_ntohs(tcp->window) << (d->window_scale & 15);

	if (tcp->rst) {
		__sync_fetch_and_or(&d->seen, SAW_RST);
		return;
	}
	raise(&d->sent, upto);
	raise(&other->acknowledged, bpf_ntohl(tcp->ack_seq));
	if (window > MOST_REACH)
		window = MOST_REACH;
	if (window > other->reach)
		other->reach = window;
	if (ahead(bpf_ntohl(tcp->ack_seq), other->acknowledged) >= 0)
		other->window = shifted(tcp->window, d->window_shift);
	d->heard = bpf_ktime_get_ns();
	if (d->seen & SAW_FIN) {
		/* What comes behind the FIN only acknowledges. */
		if (ahead(upto, d->fin) <= 0)
			return;
		/* A sender sends nothing behind its FIN: that one was another's. */
		__sync_fetch_and_and(&d->seen, ~(SAW_FIN | SAW_FIRST_FIN));
	}
	d->last = d->heard;
	/* The FIN is the last that is sent, and the receiver has not had it. */
	if (tcp->fin && ahead(upto, d->sent) >= 0 && ahead(upto, d->acknowledged) > 0) {
		d->fin = upto;
		__sync_fetch_and_or(&d->seen, other->seen & SAW_FIN ? SAW_FIN : SAW_FIN | SAW_FIRST_FIN);
	}
}

static __always_inline int has_ended(const struct direction *d)
{
	return d->seen & SAW_FIN && ahead(d->fin, d->acknowledged) <= 0;
}

/* Whether neither end has the connection any more, so that its addresses and ports may be another's. */
static __always_inline int is_over(const struct direction *d, const struct direction *other)
{
	return ((d->seen | other->seen) & SAW_RST) || (has_ended(d) && has_ended(other));
}

/* The number that an acknowledgment has for the proxy's socket: at most the one that the socket waits for. It has not had
 * what was translated since, and drops what lies beyond its window (RFC 9293 3.10.7.4).
 */
static __always_inline __be32 for_socket(__be32 number, const struct direction *d)
{
	__u32 next = d->boundary - d->add_sequence;

	return ahead(bpf_ntohl(number), next) > 0 ? bpf_htonl(next) : number;
}

/* Makes a segment with data a pure acknowledgement: its data is for the other end, which has it already. */
static __always_inline int acknowledge_only(struct __sk_buff *skb, const struct layout *layout,
					    const struct direction *d)
{
	void *data, *end;
	__u32 header, before, now, transport = layout->ipv6 ? 54 : 34;
	struct { __u32 source[4], destination[4], length, protocol; } pseudo = {};
	__u8 bytes[64] = {};
	struct tcphdr *tcp = tcp_of(skb, layout);
	__u16 check;
	__s64 sum;

	if (!tcp)
		return DROP;
	header = tcp->doff * 4;
	if (header < sizeof(*tcp) || header > MAX_HEADER)
		return DROP;
	if (bpf_skb_change_tail(skb, transport + header, 0) < 0)
		return DROP;
	tcp = tcp_of(skb, layout);
	if (!tcp)
		return DROP;
	tcp->fin = 0;
	tcp->psh = 0;
	tcp->seq = for_socket(tcp->seq, d);
	tcp->check = 0;
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (layout->ipv6) {
		struct ipv6hdr *ip = data + sizeof(struct ethhdr);

		if ((void *)(ip + 1) > end)
			return DROP;
		ip->payload_len = bpf_htons(header);
		__builtin_memcpy(pseudo.source, &ip->saddr, 16);
		__builtin_memcpy(pseudo.destination, &ip->daddr, 16);
	} else {
		struct iphdr *ip = data + sizeof(struct ethhdr);

		if ((void *)(ip + 1) > end)
			return DROP;
		before = ip->tot_len;
		now = bpf_htons(sizeof(*ip) + header);
		ip->tot_len = now;
		pseudo.source[0] = ip->saddr;
		pseudo.destination[0] = ip->daddr;
		if (bpf_l3_csum_replace(skb, sizeof(struct ethhdr) + __builtin_offsetof(struct iphdr, check),
					before, now, 2) < 0)
			return DROP;
	}
	pseudo.length = bpf_htonl(header);
	pseudo.protocol = bpf_htonl(IPPROTO_TCP);
	if (bpf_skb_load_bytes(skb, transport, bytes, header & 63) < 0)
		return DROP;
	sum = bpf_csum_diff(0, 0, (void *)&pseudo, sizeof(pseudo), 0);
	sum = bpf_csum_diff(0, 0, (void *)bytes, sizeof(bytes), sum);
	sum = (sum & 0xffff) + ((sum >> 16) & 0xffff);
	check = ~((sum & 0xffff) + (sum >> 16));
	if (bpf_skb_store_bytes(skb, transport + __builtin_offsetof(struct tcphdr, check), &check,
				sizeof(check), 0) < 0)
		return DROP;
	skb->tc_index = 0;
	return NEXT;
}

/* What the proxy's socket sends acknowledges what it has had itself. Its receiver has sent more since, and drops a segment
 * whose acknowledgment is too old (RFC 5961 5.2): so it gets the acknowledgment and the window of the other end.
 */
static __always_inline int refresh(struct __sk_buff *skb, const struct layout *layout, struct tcphdr *tcp,
				   const struct direction *other)
{
	__u32 number = (__u32)other->acknowledged - other->add_sequence, before, sum = 0;

	if (!tcp->ack || tcp->rst || ahead(number, bpf_ntohl(tcp->ack_seq)) <= 0)
		return NEXT;
	before = tcp->ack_seq;
	tcp->ack_seq = bpf_htonl(number);
	sum = replaced(sum, before, tcp->ack_seq);
	before = tcp->window;
	tcp->window = other->window;
	sum = replaced(sum, before, tcp->window);
	if (bpf_l4_csum_replace(skb, layout->transport + __builtin_offsetof(struct tcphdr, check), 0, sum, 0) < 0)
		return DROP;
	return NEXT;
}

/* Never ahead of what the proxy's socket would show now, which may be a tick more: while it still sends, the receiver
 * drops what is more than one tick older than the newest timestamp (PAWS, RFC 7323 5.3; Linux's TCP_PAWS_WINDOW).
 */
static __always_inline __u32 clock(const struct direction *d)
{
	/* Asked for the first packet alone. */
	if (d->timestamp_known || !d->clock_at)
		return d->timestamp_base;
	return d->timestamp_base + (__u32)((bpf_ktime_get_ns() - d->clock_at) / 1000000);
}

SEC("classifier")
int offload(struct __sk_buff *skb)
{
	struct tuple tuple = {};
	struct layout layout = {};
	struct reference *reference;
	struct direction *d, *other;
	struct entry *entry;
	struct tcphdr *tcp;
	void *end;
	__u32 state, header, from, upto, sum = 0, before, now, index, *words, out;
	int is_challenge = 0, credible;
	__be16 *flags;

	if (!read_tuple(skb, &tuple, &layout))
		return NEXT;
	reference = bpf_map_lookup_elem(&tuples, &tuple);
	if (!reference)
		return NEXT;
	index = reference->entry;
	entry = bpf_map_lookup_elem(&entries, &index);
	if (!entry)
		return NEXT;
	d = &entry->directions[reference->direction & 1];
	other = &entry->directions[~reference->direction & 1];
	state = entry->state;
	if (state != WATCHED && state != OFFLOADED)
		return NEXT;

	tcp = tcp_of(skb, &layout);
	if (!tcp)
		return NEXT;
	header = tcp->doff * 4;
	if (header < sizeof(*tcp))
		return state == WATCHED ? NEXT : DROP;
	if (reference->direction & FROM_SOCKET) {
		/* On its way out, or over lo, by which the service's packets come. A packet that another host has
		 * sent with these addresses must not get numbers that its sender could not know.
		 */
		int is_own = !skb->ingress_ifindex || skb->ifindex == entry->directions[1].in_interface;

		return entry->draining && is_own ? refresh(skb, &layout, tcp, other) : NEXT;
	}
	if (tcp->syn) {
		if (state == WATCHED)
			return NEXT;
		if (is_over(d, other)) {
			entry->state = OVER;
			return NEXT;
		}
		is_challenge = 1;
	}
	if (skb->tc_index == FOR_SOCKET)
		return acknowledge_only(skb, &layout, d);

	from = bpf_ntohl(tcp->seq) + d->add_sequence;
	upto = from + layout.payload + tcp->fin;
	credible = !is_challenge && is_credible(tcp, d, other, from, upto);
	if (credible)
		note(tcp, d, other, upto);
	if (state == WATCHED) {
		if (credible)
			d->in_interface = skb->ifindex;
		return NEXT;
	}

	if (entry->draining && tcp->ack && !tcp->rst && !is_challenge &&
	    ahead(bpf_ntohl(tcp->ack_seq), other->boundary) < 0) {
		/* The proxy's socket waits for this one; the other end has had its own already. */
		if (layout.payload == 0 && !tcp->fin) {
			before = tcp->seq;
			tcp->seq = for_socket(before, d);
			now = tcp->seq;
			if (now != before && bpf_l4_csum_replace(skb, layout.transport +
					__builtin_offsetof(struct tcphdr, check), before, now, 4) < 0)
				return DROP;
			return NEXT;
		}
		/* Its data is for the other end all the same. */
		skb->tc_index = FOR_SOCKET;
		bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS);
		skb->tc_index = 0;
		tcp = tcp_of(skb, &layout);
		if (!tcp)
			return DROP;
	}

	if (is_challenge) {
		/* Someone has these addresses and ports for a connection of their own, or says so. The
		 * receiver is asked whether it has the old one: it acknowledges what it has had before, or
		 * resets (RFC 5961 4.2). It must not see the SYN, which is none of its own. */
		flags = (__be16 *)tcp + 6;
		before = *flags;
		*flags = (before & bpf_htons(0xf000)) | bpf_htons(0x0010);
		sum = replaced(sum, before, *flags);
		from = (__u32)d->acknowledged - layout.payload - 1;
	}

	before = *(__u32 *)&tcp->source;
	tcp->source = d->to.source_port;
	tcp->dest = d->to.destination_port;
	now = (__u32)d->to.destination_port << 16 | d->to.source_port;
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the two ports are put together as a little-endian word"
#endif
	sum = replaced(sum, before, now);

	before = tcp->seq;
	tcp->seq = bpf_htonl(from);
	sum = replaced(sum, before, tcp->seq);

	if (tcp->ack) {
		before = tcp->ack_seq;
		now = is_challenge ? (__u32)other->acknowledged : bpf_ntohl(before);
		tcp->ack_seq = bpf_htonl(now - other->add_sequence);
		sum = replaced(sum, before, tcp->ack_seq);
	}
	if (d->window_shift) {
		__u16 window = tcp->window;

		tcp->window = shifted(window, d->window_shift);
		sum = replaced(sum, window, tcp->window);
	}

	end = (void *)(long)skb->data_end;
	words = (void *)(tcp + 1);
	if (header == sizeof(*tcp) + 12 && (void *)(words + 3) <= end &&
	    words[0] == bpf_htonl(PADDED_TIMESTAMPS)) {
		struct options o = {
			.timestamp_base = clock(d), .timestamp_add = d->timestamp_add,
			.timestamp_known = d->timestamp_known,
			.echo_add = other->timestamp_add, .echo_known = other->timestamp_known,
		};

		before = words[1];
		words[1] = bpf_htonl(timestamp(&o, bpf_ntohl(before)));
		sum = replaced(sum, before, words[1]);
		before = words[2];
		words[2] = bpf_htonl(echo(&o, bpf_ntohl(before)));
		sum = replaced(sum, before, words[2]);
		if (credible && !d->timestamp_known) {
			d->timestamp_add = o.timestamp_add;
			d->timestamp_known = 1;
		}
	} else if (header > sizeof(*tcp)) {
		struct options o = {
			.add_acknowledgement = -other->add_sequence,
			.timestamp_base = clock(d), .timestamp_add = d->timestamp_add,
			.timestamp_known = d->timestamp_known,
			.echo_add = other->timestamp_add, .echo_known = other->timestamp_known,
		};
		__u32 at = layout.transport + sizeof(*tcp), length = header - sizeof(*tcp);
		__u8 were[MAX_OPTIONS];
		__s64 changed;

		if (length == 0 || length > MAX_OPTIONS)
			return DROP;
		if (bpf_skb_load_bytes(skb, at, o.bytes, length) < 0)
			return DROP;
		o.length = length;
		__builtin_memcpy(were, o.bytes, MAX_OPTIONS);
		for (int step = 0; step < MAX_OPTIONS && translate_option(&o); step++)
			;
		changed = bpf_csum_diff((void *)were, MAX_OPTIONS, (void *)o.bytes, MAX_OPTIONS, sum);
		if (changed < 0 || bpf_skb_store_bytes(skb, at, o.bytes, length, 0) < 0)
			return DROP;
		sum = changed;
		if (credible) {
			d->timestamp_add = o.timestamp_add;
			d->timestamp_known = o.timestamp_known;
		}
	}

	/* The kernel knows whether the checksum is complete or left to the interface (bpf-helpers(7)). */
	{
		__u32 at = layout.transport + __builtin_offsetof(struct tcphdr, check);

		if (bpf_l4_csum_replace(skb, at, 0, sum, 0) < 0 ||
		    bpf_l4_csum_replace(skb, at, 0, d->address_sum, BPF_F_PSEUDO_HDR) < 0)
			return DROP;
	}
	if (layout.ipv6) {
		struct { __u32 source[4], destination[4]; } addresses;

		__builtin_memcpy(addresses.source, d->to.source, 16);
		__builtin_memcpy(addresses.destination, d->to.destination, 16);
		if (bpf_skb_store_bytes(skb, sizeof(struct ethhdr) + __builtin_offsetof(struct ipv6hdr, saddr),
					&addresses, sizeof(addresses), 0) < 0)
			return DROP;
	} else {
		__u32 addresses[2] = { d->to.source[0], d->to.destination[0] };

		if (bpf_l3_csum_replace(skb, sizeof(struct ethhdr) + __builtin_offsetof(struct iphdr, check),
					0, d->address_sum, 0) < 0 ||
		    bpf_skb_store_bytes(skb, sizeof(struct ethhdr) + __builtin_offsetof(struct iphdr, saddr),
					addresses, sizeof(addresses), 0) < 0)
			return DROP;
	}

	out = d->out_interface;
	switch (d->out) {
	case TO_LOOPBACK: {
		/* lo has the address of zeros; anything else is "for another host" (eth_type_trans). */
		__u8 zeros[2 * ETH_ALEN] = {};

		if (bpf_skb_store_bytes(skb, 0, zeros, sizeof(zeros), 0) < 0)
			return DROP;
		return bpf_redirect(out, BPF_F_INGRESS);
	}
	case TO_NEIGHBOUR:
		return bpf_redirect_neigh(out, 0, 0, 0);
	default:
		return NEXT;
	}
}

/* The digest of what this was compiled from: tests/bpf_object.ts. */
char digest[] SEC("source") = SOURCE;

/* The helpers ask for it; the source is under either licence. */
char licenses[] SEC("license") = "Dual MIT/GPL";

/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Where programs of packets keep what they know of the one at hand: their stack would be too small. There is one at a time on
 * each CPU. */
#ifndef CLUSTERMESH_SCRATCH_H
#define CLUSTERMESH_SCRATCH_H

#include "address.h"
#include "lb.h"

enum { SCRATCH_QUOTED = 128 }; /* bytes of a packet that an ICMP error quotes */

/* What a packet is: its ends, and where its headers are. */
struct packet {
	struct ct_key ends;
	union {
		__u32 id;      /* of a fragmented packet */
		__be32 number; /* of another one of TCP: what it acknowledges, or where it opens */
	};
	__u16 network;   /* where its headers are */
	__u16 transport;
	__u16 length;    /* from the network header on, by what that says */
	__u16 check;     /* of the IPv4 header */
	__u8 flags;      /* enum packet_flag */
	__u8 tcp;        /* enum tcp_flag */
	__u8 head;       /* bytes of the transport's header */
	__u8 hops;       /* it may still go */
	struct ct_fragment_key fragment; /* of a fragmented packet */
	struct ct_key pair;              /* where the pair of its entry is looked for */
};

/* What a packet's ends become. */
struct ends {
	struct address source;
	struct address destination;
	__be16 source_port;
	__be16 destination_port;
};

/* What an ICMP error quotes: as it was sent, and the ends it would have if it came back. */
struct quote {
	struct packet packet;
	struct ct_key back;
};

/* A connection that begins. */
struct ct_new {
	struct lb_service_key service;
	struct lb_chosen chosen;
	struct ct_key reply_key;
	struct ct_entry forward;
	struct ct_entry reply;
	struct bpf_fib_lookup route;
};

struct ct_scratch {
	struct packet packet;
	struct ct_new new;
	struct ends to;
	struct quote quote;
	__u8 quoted[SCRATCH_QUOTED];
};

DECLARE_MAP(ct_scratch, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct ct_scratch, 1, 0);

/* How often this CPU has searched in vain, within a tick, for a port to lend towards a backend. */
struct ct_searched {
	struct address backend;
	__u32 tick;
	__be16 port; /* of the backend */
	__u8 protocol;
	__u8 times;
};
_Static_assert(sizeof(struct ct_searched) == 24, "struct ct_searched");

/* Of two backends in one place the later is remembered. */
enum { SEARCHES_REMEMBERED = 256 };

DECLARE_MAP(ct_searched, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct ct_searched, SEARCHES_REMEMBERED, 0);

static __always_inline struct ct_scratch *scratch(void)
{
	__u32 all = 0;

	return bpf_map_lookup_elem(MAP(ct_scratch), &all);
}

#endif

/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a packet is: its ends, and where its headers are. Every offset is checked where it is read. */
#ifndef CLUSTERMESH_PACKET_H
#define CLUSTERMESH_PACKET_H

#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/stddef.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include "frame.h"
#include "scratch.h"

/* How much of a packet there is to go by. */
enum content {
	CONTENT_OTHER, /* no IP, or broken: it is left to the kernel */
	CONTENT_ENDS,  /* only addresses */
	CONTENT_FLOW,  /* ports, too */
	CONTENT_ERROR, /* ICMP: an error about another packet */
};

enum packet_flag {
	PACKET_IPV6 = 1,
	PACKET_FRAGMENTED = 2,     /* the first fragment, with ports */
	PACKET_LATER_FRAGMENT = 4, /* another one: no header of the transport */
	PACKET_JUMBO = 8,          /* of IPv6, with a header that says how long it is, and goes where it is cut */
	PACKET_UNSUMMED = 16,      /* a datagram without a checksum of the transport's */
};

/* <linux/icmp.h> needs a C library. */
struct icmp_header {
	__u8 type;
	__u8 code;
	__u16 check;
	__be32 rest;
};

enum {
	ICMP_UNREACHABLE = 3,
	ICMP_PORT = 3,        /* unreachable */
	ICMP_TOO_LARGE = 4,   /* to go on unfragmented: unreachable, too */
	ICMP_TIME = 11,
	ICMP_PARAMETER = 12,
	ICMP6_UNREACHABLE = 1,
	ICMP6_PORT = 4,
	ICMP6_TOO_LARGE = 2,  /* a type */
	ICMP6_TIME = 3,
	ICMP6_QUERIES = 128,  /* the first type that is no error */
};

enum tcp_flag { TCP_FIN = 1, TCP_SYN = 2, TCP_RST = 4, TCP_ACK = 16 };

enum { MAX_EXTENSIONS = 6, FRAGMENT_OFFSET = 0x1fff, FRAGMENT_MORE = 0x2000, FRAGMENT_NONE = 0x4000 };

enum { FRAGMENT_TIMEOUT = 30 }; /* in ticks: as long as the kernel waits for a packet's fragments */

/* What stands for many may be longer than it can say, and says nothing then (BIG TCP): it is as long as can be said. */
enum { LARGEST = 65535, JUMBO_HEADER = 8 };

static __always_inline bool parse_ipv4(struct frame frame, struct packet *packet)
{
	struct iphdr *ip = header(frame, packet->network, sizeof(*ip));
	__u16 fragment;

	if (!ip || ip->version != 4 || ip->ihl < 5)
		return false;
	fragment = bpf_ntohs(ip->frag_off);
	packet->ends.source = mapped(ip->saddr);
	packet->ends.destination = mapped(ip->daddr);
	packet->ends.protocol = ip->protocol;
	packet->transport = packet->network + ip->ihl * 4;
	packet->length = ip->tot_len || !frame_segments(frame) ? bpf_ntohs(ip->tot_len) : LARGEST;
	packet->check = ip->check;
	packet->hops = ip->ttl;
	packet->id = ip->id;
	if (fragment & FRAGMENT_OFFSET)
		packet->flags = PACKET_LATER_FRAGMENT;
	else if (fragment & FRAGMENT_MORE)
		packet->flags = PACKET_FRAGMENTED;
	return true;
}

/* Each extension header that may stand before the transport's. */
static __always_inline bool skip_extensions(struct frame frame, struct packet *packet, __u8 next)
{
#pragma unroll
	for (__u32 i = 0; i < MAX_EXTENSIONS; i++) {
		__u8 *extension;

		if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_DSTOPTS && next != IPPROTO_FRAGMENT)
			break;
		extension = header(frame, packet->transport, 8);
		if (!extension)
			return false;
		if (next == IPPROTO_FRAGMENT) {
			__u16 fragment = bpf_ntohs(*(__be16 *)(extension + 2));

			packet->id = *(__u32 *)(extension + 4);
			if (fragment & 0xfff8)
				packet->flags |= PACKET_LATER_FRAGMENT;
			else if (fragment & 1)
				packet->flags |= PACKET_FRAGMENTED;
			packet->transport += 8;
		} else {
			packet->transport += (extension[1] + 1) * 8;
		}
		next = extension[0];
		if (packet->flags & PACKET_LATER_FRAGMENT)
			break;
	}
	packet->ends.protocol = next;
	return true;
}

/* An IPv4 address in IPv6's header, where the kernel takes none either: it would be taken for that of a packet of IPv4. */
static __always_inline bool parse_ipv6(struct frame frame, struct packet *packet)
{
	struct ipv6hdr *ip = header(frame, packet->network, sizeof(*ip));

	if (!ip || ip->version != 6)
		return false;
	__builtin_memcpy(&packet->ends.source, &ip->saddr, 2 * sizeof(struct address));
	if (is_ipv4(&packet->ends.source) || is_ipv4(&packet->ends.destination))
		return false;
	packet->transport = packet->network + sizeof(*ip);
	packet->length = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	packet->hops = ip->hop_limit;
	packet->flags = PACKET_IPV6;
	if (!ip->payload_len && frame_segments(frame)) {
		packet->length = LARGEST;
		packet->flags |= ip->nexthdr == IPPROTO_HOPOPTS ? PACKET_JUMBO : 0;
	}
	return skip_extensions(frame, packet, ip->nexthdr);
}

/* In ticks of 2^30 ns, 1.07 s. */
static __always_inline __u32 ct_now(void)
{
	return bpf_ktime_get_coarse_ns() >> 30;
}

static __always_inline struct ct_fragment_key *fragment_key(struct packet *packet)
{
	packet->fragment.source = packet->ends.source;
	packet->fragment.destination = packet->ends.destination;
	packet->fragment.id = packet->id;
	packet->fragment.protocol = packet->ends.protocol;
	return &packet->fragment;
}

/* A later fragment has the ports of the first, where that was translated. */
static __always_inline enum content recall_fragment(struct packet *packet)
{
	struct ct_fragment *first = bpf_map_lookup_elem(MAP(ct_fragments), fragment_key(packet));

	if (!first || (__s32)(first->expires - ct_now()) <= 0)
		return CONTENT_ENDS;
	packet->ends.source_port = first->source_port;
	packet->ends.destination_port = first->destination_port;
	return CONTENT_FLOW;
}

static __always_inline void remember_fragment(struct packet *packet)
{
	struct ct_fragment first = { packet->ends.source_port, packet->ends.destination_port, ct_now() + FRAGMENT_TIMEOUT };

	bpf_map_update_elem(MAP(ct_fragments), fragment_key(packet), &first, BPF_ANY);
}

static __always_inline enum content read_ports(struct packet *packet, const __be16 *ports)
{
	packet->ends.source_port = ports[0];
	packet->ends.destination_port = ports[1];
	return CONTENT_FLOW;
}

/* `size` bytes of the transport's header, NULL where the packet says itself that they are none of it. */
static __always_inline void *transport_header(struct frame frame, const struct packet *packet, __u32 size)
{
	if (packet->transport + size > packet->network + packet->length && !frame_segments(frame))
		return NULL;
	return header(frame, packet->transport, size);
}

static __always_inline enum content parse_transport(struct frame frame, struct packet *packet)
{
	__u8 protocol = packet->ends.protocol, *found;

	if (packet->flags & PACKET_LATER_FRAGMENT)
		return recall_fragment(packet);
	if (packet->flags & PACKET_FRAGMENTED) /* its number may have been another packet's, that was translated */
		bpf_map_delete_elem(MAP(ct_fragments), fragment_key(packet));
	if (protocol == IPPROTO_TCP) {
		found = transport_header(frame, packet, sizeof(struct tcphdr));
		if (!found)
			return CONTENT_ENDS;
		packet->tcp = found[13];
		packet->head = found[12] >> 4 << 2;
		if (!(packet->flags & PACKET_FRAGMENTED))
			packet->number = *(__be32 *)(packet->tcp & TCP_SYN ? found + offsetof(struct tcphdr, seq) :
									     found + offsetof(struct tcphdr, ack_seq));
		return read_ports(packet, (__be16 *)found);
	}
	found = transport_header(frame, packet, sizeof(struct udphdr));
	if (!found)
		return CONTENT_ENDS;
	packet->head = sizeof(struct udphdr);
	if (protocol == IPPROTO_UDP && !*(__u16 *)(found + offsetof(struct udphdr, check)))
		packet->flags |= PACKET_UNSUMMED;
	if (protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP)
		return read_ports(packet, (__be16 *)found);
	if (protocol == IPPROTO_ICMPV6)
		return *found < ICMP6_QUERIES ? CONTENT_ERROR : CONTENT_ENDS;
	if (protocol != IPPROTO_ICMP)
		return CONTENT_ENDS;
	return *found == ICMP_UNREACHABLE || *found == ICMP_TIME || *found == ICMP_PARAMETER ? CONTENT_ERROR : CONTENT_ENDS;
}

/* The network's header, at `network`. False where there is none that is known. */
static __always_inline bool parse_network(struct frame frame, __u16 network, struct packet *packet)
{
	__be16 protocol = frame_protocol(frame);

	packet->ends.source_port = packet->ends.destination_port = 0;
	__builtin_memset(packet->ends.pad, 0, sizeof(packet->ends.pad));
	packet->flags = packet->tcp = packet->head = 0;
	packet->network = network;
	if (protocol == bpf_htons(ETH_P_IP))
		return parse_ipv4(frame, packet);
	return protocol == bpf_htons(ETH_P_IPV6) && parse_ipv6(frame, packet);
}

/* Whether all is there that the packet says to be; one that stands for many may say nothing. */
static __always_inline bool is_whole(struct frame frame, const struct packet *packet)
{
	return frame_segments(frame) || (__u32)packet->network + packet->length <= frame_size(frame);
}

/* Reads a packet whose network header is at `network`. */
static __always_inline enum content parse(struct frame frame, __u16 network, struct packet *packet)
{
	if (!parse_network(frame, network, packet) || !is_whole(frame, packet))
		return CONTENT_OTHER;
	return parse_transport(frame, packet);
}

/* Opens a TCP connection. */
static __always_inline bool is_syn(const struct packet *packet)
{
	return (packet->tcp & (TCP_SYN | TCP_ACK | TCP_RST)) == TCP_SYN;
}

#endif

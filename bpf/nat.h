/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A packet's ends exchanged. Checksums are changed by the difference, so that a wrong one stays wrong, and one that a device
 * is still to complete (CHECKSUM_PARTIAL) is completed right: ports are none of what it holds until then. */
#ifndef CLUSTERMESH_NAT_H
#define CLUSTERMESH_NAT_H

#include <linux/stddef.h>

#include "packet.h"

/* As 32 bits of a ones' complement sum. */
static __always_inline __u32 sum_fold32(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	return (sum & 0xffffffff) + (sum >> 32);
}

/* As 16. */
static __always_inline __u16 sum_fold16(__u64 sum)
{
	sum = sum_fold32(sum);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

static __always_inline __u64 sum_of_change(const struct address *before, const struct address *after)
{
	__u64 sum = 0;

#pragma unroll
	for (__u32 i = 0; i < 4; i++)
		sum += (__u64)after->word[i] + (__u32)~before->word[i];
	return sum;
}

/* A checksum of what has changed by `change`. */
static __always_inline __u16 changed_check(__u16 check, __u64 change)
{
	return ~sum_fold16((__u16)~check + (__u64)sum_fold32(change));
}

/* A checksum of the transport's, of what has changed by `change`: 0, or what has failed. */
static __always_inline long change_check(struct frame frame, __u32 offset, __u64 change, __u64 flags)
{
	__u16 *check;

	if (!frame.is_xdp)
		return bpf_l4_csum_replace(skb_of(frame), offset, 0, sum_fold32(change), flags);
	check = header(frame, offset, sizeof(*check));
	if (!check)
		return -1;
	if (!*check && flags & BPF_F_MARK_MANGLED_0) /* there is none */
		return 0;
	*check = changed_check(*check, change);
	if (!*check && flags & BPF_F_MARK_MANGLED_0)
		*check = 0xffff;
	return 0;
}

struct ends4 {
	__u16 check;
	__be32 source;
	__be32 destination;
} __attribute__((packed));

/* The addresses in an IP header at `network`, and its checksum where it has one: IPv4's sum is as it was then. `flags` are
 * for IPv6's, of which a checksum that a device computed over all of the packet must know, but where another one makes up
 * for them. */
static __always_inline int write_addresses(struct frame frame, const struct packet *packet, __u32 network,
					   const struct address *source, const struct address *destination, __u16 check,
					   __u64 flags)
{
	if (packet->flags & PACKET_IPV6) {
		if (frame_store(frame, network + offsetof(struct ipv6hdr, saddr), source, 16, flags))
			return -1;
		return frame_store(frame, network + offsetof(struct ipv6hdr, daddr), destination, 16, flags);
	} else {
		struct ends4 ends = { check, source->word[3], destination->word[3] };

		return frame_store(frame, network + offsetof(struct iphdr, check), &ends, sizeof(ends), 0);
	}
}

/* A checksum that a device computed over all of the packet must know of new ports where no other one makes up for them. */
static __always_inline int nat_ports(struct frame frame, const struct packet *packet, const struct ends *to, __u32 check)
{
	const struct ct_key *from = &packet->ends;
	__be16 ports[2] = { to->source_port, to->destination_port };
	__u64 change = (__u64)to->source_port + to->destination_port + (__u16)~from->source_port +
		       (__u16)~from->destination_port;

	if (to->source_port == from->source_port && to->destination_port == from->destination_port)
		return 0;
	if (change_check(frame, check, change, from->protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0))
		return -1;
	return frame_store(frame, packet->transport, ports, sizeof(ports),
			   packet->flags & PACKET_UNSUMMED ? BPF_F_RECOMPUTE_CSUM : 0);
}

/* IPv4's checksum is that of all that changes in its header. */
static __always_inline int write_hops(struct frame frame, const struct packet *packet, __u8 hops)
{
	if (packet->flags & PACKET_IPV6)
		return frame_store(frame, packet->network + offsetof(struct ipv6hdr, hop_limit), &hops, sizeof(hops),
				   BPF_F_RECOMPUTE_CSUM);
	return frame_store(frame, packet->network + offsetof(struct iphdr, ttl), &hops, sizeof(hops), 0);
}

/* Gives the packet the ends `to`, and so many hops to go. -1 where the kernel will not: the packet is half changed then. */
static __always_inline int nat(struct frame frame, const struct packet *packet, const struct ends *to, __u8 hops)
{
	const struct ct_key *from = &packet->ends;
	__u64 change = sum_of_change(&from->source, &to->source) + sum_of_change(&from->destination, &to->destination);
	__u32 check = packet->transport;

	if (!(packet->flags & PACKET_LATER_FRAGMENT) && from->protocol != IPPROTO_SCTP) {
		__u64 flags = BPF_F_PSEUDO_HDR;

		if (from->protocol == IPPROTO_UDP) {
			check += offsetof(struct udphdr, check);
			flags |= BPF_F_MARK_MANGLED_0;
		} else {
			check += offsetof(struct tcphdr, check);
		}
		if (change_check(frame, check, change, flags) || nat_ports(frame, packet, to, check))
			return -1;
	}
	if (hops != packet->hops && write_hops(frame, packet, hops))
		return -1;
	change += (__u64)bpf_htons(hops << 8) + (__u16)~bpf_htons(packet->hops << 8);
	return write_addresses(frame, packet, packet->network, &to->source, &to->destination,
			       changed_check(packet->check, change), BPF_F_RECOMPUTE_CSUM);
}

#endif

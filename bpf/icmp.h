/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* ICMP errors about translated packets: what they quote, and whom they go to, becomes what the receiver knows. */
#ifndef CLUSTERMESH_ICMP_H
#define CLUSTERMESH_ICMP_H

#include "ct.h"
#include "nat.h"

/* Not a later fragment, which has no ports. */
static __always_inline bool read_quote(struct __sk_buff *skb, const struct packet *packet, struct quote *quote)
{
	const struct ct_key *ends = &quote->packet.ends;
	__be16 ports[2];

	if (!parse_network(of_skb(skb), packet->transport + sizeof(struct icmp_header), &quote->packet) ||
	    quote->packet.flags & PACKET_LATER_FRAGMENT)
		return false;
	if (ends->protocol != IPPROTO_TCP && ends->protocol != IPPROTO_UDP && ends->protocol != IPPROTO_SCTP)
		return false;
	if (bpf_skb_load_bytes(skb, quote->packet.transport, ports, sizeof(ports)))
		return false;
	quote->back = *ends;
	quote->back.source = ends->destination;
	quote->back.destination = ends->source;
	quote->back.source_port = ports[1];
	quote->back.destination_port = ports[0];
	return true;
}

/* The checksum of the quoted transport's header, where so much is quoted; what it changed by is added to `change`. */
static __always_inline int nat_quoted_check(struct __sk_buff *skb, const struct quote *quote, __u64 by, __u64 *change)
{
	__u32 at = quote->packet.transport;
	__u16 before, after;

	if (quote->back.protocol == IPPROTO_UDP)
		at += offsetof(struct udphdr, check);
	else if (quote->back.protocol == IPPROTO_TCP)
		at += offsetof(struct tcphdr, check);
	else
		return 0;
	if (bpf_skb_load_bytes(skb, at, &before, sizeof(before)))
		return 0;
	if (!before && quote->back.protocol == IPPROTO_UDP)
		return 0;
	after = changed_check(before, by);
	*change += (__u64)after + (__u16)~before;
	return bpf_skb_store_bytes(skb, at, &after, sizeof(after), 0);
}

/* Gives the quoted packet the ends `to`, which are those of what came back; returns by how much its bytes change the sum. */
static __always_inline int nat_quote(struct __sk_buff *skb, const struct packet *packet, const struct quote *quote,
				     const struct ends *to, __u64 *change)
{
	__u64 addresses = sum_of_change(&quote->back.source, &to->source) +
			  sum_of_change(&quote->back.destination, &to->destination);
	__u64 ports = (__u64)to->source_port + to->destination_port + (__u16)~quote->back.source_port +
		      (__u16)~quote->back.destination_port;
	__be16 swapped[2] = { to->destination_port, to->source_port };
	__u16 check = changed_check(quote->packet.check, addresses);

	*change = addresses + ports;
	if (!(packet->flags & PACKET_IPV6))
		*change += (__u64)check + (__u16)~quote->packet.check;
	if (nat_quoted_check(skb, quote, addresses + ports, change) ||
	    bpf_skb_store_bytes(skb, quote->packet.transport, swapped, sizeof(swapped), 0))
		return -1;
	return write_addresses(of_skb(skb), packet, quote->packet.network, &to->destination, &to->source, check, 0);
}

/* Translates the error as `entry` says of what comes back. Whoever found the error, be it no end, keeps its address. */
static __always_inline int nat_error(struct __sk_buff *skb, const struct packet *packet, const struct quote *quote,
				     const struct ends *to)
{
	struct address source = packet->ends.source;
	__u32 check = packet->transport + offsetof(struct icmp_header, check);
	__u64 quoted = 0, outer;

	if (is_same_address(&source, &quote->back.source))
		source = to->source;
	outer = sum_of_change(&packet->ends.source, &source) +
		sum_of_change(&packet->ends.destination, &to->destination);
	if (nat_quote(skb, packet, quote, to, &quoted) || bpf_l4_csum_replace(skb, check, 0, sum_fold32(quoted), 0))
		return -1;
	if (packet->flags & PACKET_IPV6 && bpf_l4_csum_replace(skb, check, 0, sum_fold32(outer), BPF_F_PSEUDO_HDR))
		return -1;
	return write_addresses(of_skb(skb), packet, packet->network, &source, &to->destination,
			       changed_check(packet->check, outer), BPF_F_RECOMPUTE_CSUM);
}

#endif

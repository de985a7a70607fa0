/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A packet turned into the answer it gets at once: a TCP reset, or an ICMP error. It leaves by the device it came from. What
 * was a fragment, or came with more headers than can be quoted, is dropped without an answer. */
#ifndef CLUSTERMESH_REFUSE_H
#define CLUSTERMESH_REFUSE_H

#include "ct.h"
#include "drop.h"
#include "nat.h"

enum { ANSWER_HOPS = 64, TCP_HEADER = 20, ICMP_QUOTED_BEYOND = 8 };

/* More than may stand before the transport's header in a packet that is quoted. */
enum { BEFORE_TRANSPORT = ETH_HLEN + SCRATCH_QUOTED };

/* Back to where it came from: the link-layer's addresses, where there are such, change places. */
static __always_inline int send_back(struct __sk_buff *skb, const struct packet *packet)
{
	__u8 ends[2 * ETH_ALEN], swapped[2 * ETH_ALEN];

	if (packet->network == ETH_HLEN) {
		if (bpf_skb_load_bytes(skb, 0, ends, sizeof(ends)))
			return dropped(REASON_DROP_BROKEN);
		__builtin_memcpy(swapped, ends + ETH_ALEN, ETH_ALEN);
		__builtin_memcpy(swapped + ETH_ALEN, ends, ETH_ALEN);
		if (bpf_skb_store_bytes(skb, 0, swapped, sizeof(swapped), 0))
			return dropped(REASON_DROP_BROKEN);
	}
	return bpf_redirect(skb->ifindex, 0);
}

/* The sum of an answer's pseudo header. What says that an IPv4 address is mapped is nothing in a ones' complement sum. */
static __always_inline __u64 sum_of_ends(const struct ct_key *ends, __u8 protocol, __u16 length)
{
	__u64 sum = bpf_htons(protocol) + (__u64)bpf_htons(length);

#pragma unroll
	for (__u32 i = 0; i < 4; i++)
		sum += (__u64)ends->source.word[i] + ends->destination.word[i];
	return sum;
}

/* An IP header with the packet's ends swapped before `length` bytes of `protocol` at `transport`. Extension headers and
 * options before that stay; what the options sum up to is what the rest of the old header lacked. */
static __always_inline int answer_ip(struct __sk_buff *skb, const struct packet *packet, __u32 transport, __u8 protocol,
				     __u16 length)
{
	const struct ct_key *ends = &packet->ends;

	if (packet->flags & PACKET_IPV6) {
		struct ipv6hdr ip;

		if (bpf_skb_load_bytes(skb, packet->network, &ip, sizeof(ip)))
			return -1;
		ip.payload_len = bpf_htons(transport - packet->network - sizeof(ip) + length);
		ip.hop_limit = ANSWER_HOPS;
		if (transport == packet->network + sizeof(ip))
			ip.nexthdr = protocol;
		__builtin_memcpy(&ip.saddr, &ends->destination, sizeof(ip.saddr));
		__builtin_memcpy(&ip.daddr, &ends->source, sizeof(ip.daddr));
		return bpf_skb_store_bytes(skb, packet->network, &ip, sizeof(ip), BPF_F_RECOMPUTE_CSUM);
	} else {
		__u32 size = transport - packet->network;
		struct iphdr old, ip = {
			.version = 4,
			.ihl = size / 4,
			.tot_len = bpf_htons(size + length),
			.frag_off = bpf_htons(FRAGMENT_NONE),
			.ttl = ANSWER_HOPS,
			.protocol = protocol,
			.saddr = ends->destination.word[3],
			.daddr = ends->source.word[3],
		};

		if (bpf_skb_load_bytes(skb, packet->network, &old, sizeof(old)))
			return -1;
		ip.check = ~sum_fold16((__u32)bpf_csum_diff((__be32 *)&old, size > sizeof(ip) ? sizeof(old) : 0,
							    (__be32 *)&ip, sizeof(ip), 0));
		return bpf_skb_store_bytes(skb, packet->network, &ip, sizeof(ip), BPF_F_RECOMPUTE_CSUM);
	}
}

/* Whether a device is still to complete the checksum (CHECKSUM_PARTIAL): the kernel then changes nothing of it for what is
 * no pseudo header. */
static __always_inline bool is_checked_later(struct __sk_buff *skb, __u32 check)
{
	__u16 before = 0, after = 0;

	bpf_skb_load_bytes(skb, check, &before, sizeof(before));
	bpf_l4_csum_replace(skb, check, 0, 1, 2);
	bpf_skb_load_bytes(skb, check, &after, sizeof(after));
	return before == after;
}

/* 0, or -1 where the kernel will not. */
static __always_inline int reset(struct __sk_buff *skb, const struct packet *packet)
{
	__u32 at = packet->transport, check = at + offsetof(struct tcphdr, check);
	struct tcphdr tcp, answer = { .doff = TCP_HEADER / 4, .rst = 1 };
	__u32 length = packet->length - (at - packet->network);
	__u64 sum;

	if (bpf_skb_load_bytes(skb, at, &tcp, sizeof(tcp)))
		return -1;
	answer.source = tcp.dest;
	answer.dest = tcp.source;
	if (tcp.ack) {
		answer.seq = tcp.ack_seq;
	} else {
		answer.ack = 1;
		answer.ack_seq = bpf_htonl(bpf_ntohl(tcp.seq) + tcp.syn + tcp.fin + length - tcp.doff * 4);
	}
	if (bpf_skb_change_tail(skb, at + TCP_HEADER, 0))
		return -1;
	sum = sum_of_ends(&packet->ends, IPPROTO_TCP, TCP_HEADER);
	if (is_checked_later(skb, check))
		answer.check = sum_fold16(sum);
	else
		answer.check = ~sum_fold16(sum + (__u32)bpf_csum_diff(NULL, 0, (__be32 *)&answer, sizeof(answer), 0));
	if (bpf_skb_store_bytes(skb, at, &answer, sizeof(answer), BPF_F_RECOMPUTE_CSUM))
		return -1;
	if (packet->flags & PACKET_JUMBO) { /* its header may not stand before what is short */
		if (bpf_skb_adjust_room(skb, -JUMBO_HEADER, BPF_ADJ_ROOM_NET, 0))
			return -1;
		at -= JUMBO_HEADER;
	}
	return answer_ip(skb, packet, at, IPPROTO_TCP, TCP_HEADER);
}

/* How much of the packet an ICMP error quotes. */
static __always_inline __u64 quoted_size(const struct packet *packet)
{
	return (packet->transport - packet->network + ICMP_QUOTED_BEYOND) & ~3U;
}

/* Cuts the packet to `size` bytes, of which nothing is kept from behind the IP header on, and ends that a device is still to
 * complete its checksum: it would write that into what stands there now. The kernel leaves that be once what was to be summed
 * begins before the packet, so that more is taken off behind the IP header than stood before the transport's. */
static __always_inline int cut(struct __sk_buff *skb, __u32 size)
{
	return bpf_skb_change_tail(skb, size + BEFORE_TRANSPORT, 0) ||
	       bpf_skb_adjust_room(skb, -BEFORE_TRANSPORT, BPF_ADJ_ROOM_NET, 0);
}

/* The ICMP error `icmp`, without its checksum yet, about the packet, from whom it was sent to: 0, or -1 where the kernel will
 * not. */
static __always_inline int answer_error(struct __sk_buff *skb, const struct packet *packet, struct icmp_header *icmp)
{
	bool is_ipv6 = packet->flags & PACKET_IPV6;
	__u32 at = packet->network + (is_ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
	__u8 protocol = is_ipv6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP;
	struct ct_scratch *space = scratch();
	__u64 quoted = quoted_size(packet), sum;

	asm volatile("" : "+r"(quoted)); /* or the compiler checks another copy of it than it uses */
	if (!space || quoted < ICMP_QUOTED_BEYOND || quoted > SCRATCH_QUOTED ||
	    bpf_skb_load_bytes(skb, packet->network, space->quoted, quoted))
		return -1;
	sum = (__u32)bpf_csum_diff(NULL, 0, (__be32 *)space->quoted, quoted, 0) +
	      (__u64)(__u32)bpf_csum_diff(NULL, 0, (__be32 *)icmp, sizeof(*icmp), 0);
	if (is_ipv6)
		sum += sum_of_ends(&packet->ends, protocol, sizeof(*icmp) + quoted);
	icmp->check = ~sum_fold16(sum);
	if (cut(skb, at + sizeof(*icmp) + quoted) ||
	    bpf_skb_store_bytes(skb, at, icmp, sizeof(*icmp), BPF_F_RECOMPUTE_CSUM) ||
	    bpf_skb_store_bytes(skb, at + sizeof(*icmp), space->quoted, quoted, BPF_F_RECOMPUTE_CSUM))
		return -1;
	return answer_ip(skb, packet, at, protocol, sizeof(*icmp) + quoted);
}

/* What a router says, or else who would be called. */
static __always_inline bool is_routers(enum reason reason)
{
	return reason == REASON_DROP_TOO_LARGE || reason == REASON_DROP_HOPS;
}

static __always_inline struct icmp_header error_for(const struct packet *packet, enum reason reason, __u32 mtu)
{
	bool is_ipv6 = packet->flags & PACKET_IPV6;
	struct icmp_header error = {};

	if (reason == REASON_DROP_HOPS) {
		error.type = is_ipv6 ? ICMP6_TIME : ICMP_TIME;
	} else if (reason == REASON_DROP_TOO_LARGE) {
		error.type = is_ipv6 ? ICMP6_TOO_LARGE : ICMP_UNREACHABLE;
		error.code = is_ipv6 ? 0 : ICMP_TOO_LARGE;
		error.rest = bpf_htonl(mtu);
	} else {
		error.type = is_ipv6 ? ICMP6_UNREACHABLE : ICMP_UNREACHABLE;
		error.code = is_ipv6 ? ICMP6_PORT : ICMP_PORT;
	}
	return error;
}

/* Whether who sent the packet may know why it goes no further: not what has no ports to know it by, and not a reset. */
static __always_inline bool may_be_answered(const struct packet *packet, enum reason reason)
{
	if (reason == REASON_DROP_SOURCE_RANGE || reason == REASON_DROP_NO_ADDRESS || reason == REASON_DROP_BROKEN)
		return false;
	if (packet->flags & PACKET_LATER_FRAGMENT || packet->tcp & TCP_RST)
		return false;
	if (is_routers(reason))
		return quoted_size(packet) <= SCRATCH_QUOTED;
	if (packet->flags & PACKET_FRAGMENTED)
		return false;
	return packet->ends.protocol == IPPROTO_TCP || quoted_size(packet) <= SCRATCH_QUOTED;
}

/* As a router does, or a port that nobody listens on: 0, or -1 where the kernel will not. `mtu` is that of its way. */
static __always_inline int become_answer(struct __sk_buff *skb, const struct packet *packet, enum reason reason, __u32 mtu)
{
	struct icmp_header error;

	if (packet->ends.protocol == IPPROTO_TCP && !is_routers(reason))
		return reset(skb, packet);
	error = error_for(packet, reason, mtu);
	return answer_error(skb, packet, &error);
}

#endif

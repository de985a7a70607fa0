/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef CLUSTERMESH_ADDRESS_H
#define CLUSTERMESH_ADDRESS_H

#include "layouts.h"
#ifndef CLUSTERMESH_BCC
#include <bpf/bpf_endian.h>
#endif

static __always_inline struct address mapped(__be32 ipv4)
{
	return (struct address){ { 0, 0, bpf_htonl(0xffff), ipv4 } };
}

static __always_inline bool is_same_address(const struct address *one, const struct address *other)
{
	return one->word[3] == other->word[3] && one->word[2] == other->word[2] && one->word[1] == other->word[1] &&
	       one->word[0] == other->word[0];
}

static __always_inline bool is_ipv4(const struct address *address)
{
	return !address->word[0] && !address->word[1] && address->word[2] == bpf_htonl(0xffff);
}

/* 127.0.0.0/8 or ::1 */
static __always_inline bool is_loopback(const struct address *address)
{
	__u32 last = bpf_ntohl(address->word[3]);

	if (is_ipv4(address))
		return last >> 24 == 127;
	return !address->word[0] && !address->word[1] && !address->word[2] && last == 1;
}

/* Any but the unspecified address, ::, which is also what a layout has where there is none. */
static __always_inline bool is_somebody(const struct address *address)
{
	return address->word[0] | address->word[1] | address->word[2] | address->word[3];
}

/* Whether nobody sends from there to another machine: loopback, the unspecified addresses (of IPv4 0.0.0.0/8), multicast,
 * and 255.255.255.255. */
static __always_inline bool is_nobodys(const struct address *address)
{
	__u32 last = bpf_ntohl(address->word[3]);

	if (is_ipv4(address))
		return !(last >> 24) || last >> 24 == 127 || last >> 28 == 0xe || last == 0xffffffff;
	return bpf_ntohl(address->word[0]) >> 24 == 0xff || !is_somebody(address) || is_loopback(address);
}

/* Link-local or multicast IPv6: what neighbours find each other by. */
static __always_inline bool is_of_the_link(const struct address *address)
{
	__u32 first = bpf_ntohl(address->word[0]);

	return first >> 22 == 0xfe80 >> 6 || first >> 24 == 0xff;
}

#endif

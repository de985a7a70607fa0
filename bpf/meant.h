/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What connected sockets mean, by their cookies. An update of a hash or of socket storage for each connect would cost more
 * than all of the choice. */
#ifndef CLUSTERMESH_MEANT_H
#define CLUSTERMESH_MEANT_H

#include "layouts.h"

static __always_inline struct lb_meant_set *meant_set_of(__u64 cookie)
{
	__u32 set = cookie % MEANT_SETS;

	return bpf_map_lookup_elem(MAP(lb_meant), &set);
}

/* The way of the set that has this cookie, MEANT_WAYS where none has. The verifier goes one way, whichever it is. */
static __always_inline __u32 meant_way(const struct lb_meant_set *set, __u64 cookie)
{
	__u32 way = set->cookies[0] == cookie ? 0 :
		    set->cookies[1] == cookie ? 1 :
		    set->cookies[2] == cookie ? 2 :
		    set->cookies[3] == cookie ? 3 :
						MEANT_WAYS;

	asm volatile("" : "+r"(way));
	return way;
}
_Static_assert(MEANT_WAYS == 4, "meant_way() has them all");

/* NULL where this socket means nothing, or is not among them for want of room. */
static __always_inline struct lb_meant *meant_by(__u64 cookie)
{
	struct lb_meant_set *set = meant_set_of(cookie);
	__u32 way = set ? meant_way(set, cookie) : MEANT_WAYS;

	return set && way < MEANT_WAYS ? &set->meant[way] : NULL;
}

/* The same for what it means from now on: NULL where there is no room. */
static __always_inline struct lb_meant *meant_for(__u64 cookie)
{
	struct lb_meant_set *set = meant_set_of(cookie);
	__u32 way;

	if (!set)
		return NULL;
	way = meant_way(set, cookie);
	if (way >= MEANT_WAYS) {
		way = meant_way(set, 0);
		if (way >= MEANT_WAYS || __sync_val_compare_and_swap(&set->cookies[way], 0, cookie))
			return NULL;
	}
	return &set->meant[way];
}

static __always_inline void meant_free(__u64 cookie)
{
	struct lb_meant_set *set = meant_set_of(cookie);
	__u32 way = set ? meant_way(set, cookie) : MEANT_WAYS;

	if (set && way < MEANT_WAYS)
		set->cookies[way] = 0;
}

/* Suspects a socket that the agent finds nowhere, or frees its way, if it has not been connected since it was suspected:
 * whether it did. The kernel says of no socket that it has made itself when that is closed (Multipath TCP, NFS). */
static __always_inline bool meant_sweep(__u64 cookie, bool is_end)
{
	struct lb_meant_set *set = meant_set_of(cookie);
	__u32 way = set ? meant_way(set, cookie) : MEANT_WAYS;

	if (!set || way >= MEANT_WAYS)
		return false;
	if (is_end)
		return set->meant[way].suspected &&
		       __sync_val_compare_and_swap(&set->cookies[way], cookie, 0) == cookie;
	set->meant[way].suspected = true;
	return false;
}

#endif

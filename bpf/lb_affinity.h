/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Clients that stay with their backend, as long as they ask again in time and the service has it. */
#ifndef CLUSTERMESH_LB_AFFINITY_H
#define CLUSTERMESH_LB_AFFINITY_H

#include "lb_backend.h"

#define LB_SECOND 1000000000ULL

/* Where a backend is looked for: in this many blocks of slots of the group where it was seen, from the one before that on; then
 * in so many of each of the groups beside it, nearest first, since those that come and go before its own give that another
 * number. A client whose backend has moved further is given another. (Each look of all is the same to the verifier by whatever
 * way it is reached.) */
#define LB_BLOCKS_OF_ITS_OWN 16
#define LB_BLOCKS_BESIDE 4
#define LB_GROUPS_BESIDE 28
#define LB_BLOCKS_SEARCHED (LB_BLOCKS_OF_ITS_OWN + LB_BLOCKS_BESIDE * LB_GROUPS_BESIDE)
#define LB_NOWHERE 0xffffffff

SUBPROGRAM __u32 lb_stands(__u32 service_id, __u32 group, __u32 block, __u32 backend_id)
{
	struct lb_slots *slots = lb_slots_at(service_id, group, block);

	if (!slots)
		return false;
	for (__u32 i = 0; i < SLOTS_PER_BLOCK; i++) {
		if (slots->backend_ids[i] == backend_id)
			return true;
	}
	return false;
}

/* The block of slots that this backend of the service stands in: its group in the upper half, as in `where`, where it was
 * seen last. */
SUBPROGRAM __u32 lb_where(__u32 service_id, __u32 groups, __u32 backend_id, __u32 where)
{
	__u32 group = (where >> 16) % groups, block = (__u16)where, first = block & ~(LB_BLOCKS_BESIDE - 1);

	block -= block != 0;
	for (__u32 step = 1; step <= LB_BLOCKS_SEARCHED; step++) {
		__u32 beside = step - LB_BLOCKS_OF_ITS_OWN, turn = beside / LB_BLOCKS_BESIDE + 1;

		if (lb_stands(service_id, group, block, backend_id))
			return group << 16 | block;
		block++;
		if (step < LB_BLOCKS_OF_ITS_OWN || beside % LB_BLOCKS_BESIDE)
			continue;
		group = (group + (turn % 2 ? groups - turn : turn)) % groups; /* one back, two on, three back ... */
		block = first;
	}
	return LB_NOWHERE;
}

/* The id of the backend that this client stays with, 0 for none. */
static __always_inline __u32 lb_stays(struct lb_affinity_key *key, const struct lb_service *service)
{
	struct lb_affinity *known = bpf_map_lookup_elem(MAP(lb_affinity), key);
	__s64 now = bpf_ktime_get_ns(), since;
	__s64 written = service->affinity_seconds * (LB_SECOND / 16); /* not at each look */
	__u32 id, seen, where;

	if (written > (__s64)LB_SECOND)
		written = LB_SECOND;
	if (!known)
		return 0;
	since = now - known->used_ns; /* less than 0 where another CPU has used it since */
	if (since > (__s64)(service->affinity_seconds * LB_SECOND))
		return 0;
	id = known->backend_id;
	seen = (__u32)known->group << 16 | known->block;
	where = lb_where(service->service_id, service->groups, id, seen);
	if (where == LB_NOWHERE)
		return 0;
	if (since > written || where != seen) {
		known->used_ns = now;
		known->group = where >> 16;
		known->block = where;
	}
	return id;
}

static __always_inline void lb_stay(struct lb_affinity_key *key, __u32 backend_id, __u32 where)
{
	struct lb_affinity value = {
		.used_ns = bpf_ktime_get_ns(),
		.backend_id = backend_id,
		.group = where >> 16,
		.block = where,
	};

	bpf_map_update_elem(MAP(lb_affinity), key, &value, BPF_ANY);
}

#endif

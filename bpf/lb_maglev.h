/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The choice by a table: equal seeds come to equal backends on every node, and where backends come or go few others move. */
#ifndef CLUSTERMESH_LB_MAGLEV_H
#define CLUSTERMESH_LB_MAGLEV_H

#include "lb_random.h"

/* How many places are looked at: one that is out leaves what it had to those after it. */
#define MAGLEV_SEARCHED 8

/* An id: 0 where there is no table, or nobody near the seed's place. A cluster's part that is missing goes on by the seed. */
SUBPROGRAM __u32 lb_maglev_of(__u32 service_id, __u32 seed)
{
	struct lb_maglev *table = bpf_map_lookup_elem(MAP(lb_maglev), &service_id);
	struct lb_clusters *clusters = lb_all_clusters();
	__u32 start = lb_draw(&seed, MAGLEV_PLACES);

	if (!table || !clusters)
		return 0;
	for (__u32 step = 0; step < MAGLEV_SEARCHED; step++) {
		__u32 place = (start + step) % MAGLEV_PLACES, id;
		struct lb_backend *backend;

		asm volatile("" : "+r"(place)); /* or the remainder is made of a product, which says nothing of its size */
		if (place >= MAGLEV_PLACES)
			return 0;
		id = table->backend_ids[place];
		backend = lb_active(clusters, id);
		if (backend && lb_draw(&seed, LB_FULL) >= lb_reduced(clusters, backend->cluster_id))
			return id;
	}
	return 0;
}

#endif

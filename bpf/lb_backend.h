/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Backends as they stand in the maps: by id, in the slots of a group, in a group of a service. 0 is nobody's id. */
#ifndef CLUSTERMESH_LB_BACKEND_H
#define CLUSTERMESH_LB_BACKEND_H

#include "layouts.h"

static __always_inline struct lb_clusters *lb_all_clusters(void)
{
	__u32 all = 0;

	return bpf_map_lookup_elem(MAP(lb_clusters), &all);
}

static __always_inline __u16 lb_reduced(const struct lb_clusters *clusters, __u16 cluster_id)
{
	return clusters->reduced[cluster_id % LB_CLUSTERS];
}

static __always_inline struct lb_groups *lb_groups_at(__u32 service_id, __u16 block)
{
	struct lb_groups_key key = { .service_id = service_id, .block = block };

	return bpf_map_lookup_elem(MAP(lb_groups), &key);
}

static __always_inline struct lb_slots *lb_slots_at(__u32 service_id, __u16 group, __u16 block)
{
	struct lb_slots_key key = { .service_id = service_id, .group = group, .block = block };

	return bpf_map_lookup_elem(MAP(lb_slots), &key);
}

static __always_inline __u32 lb_id_at(__u32 service_id, __u16 group, __u16 slot)
{
	struct lb_slots *slots = lb_slots_at(service_id, group, slot / SLOTS_PER_BLOCK);

	return slots ? slots->backend_ids[slot % SLOTS_PER_BLOCK] : 0;
}

/* The backend with this id, unless its cluster is out. It is asked for its cluster itself: while groups are rewritten, a
 * slot may for a moment be of another cluster than its group says. */
static __always_inline struct lb_backend *lb_backend_of(const struct lb_clusters *clusters, __u32 id)
{
	struct lb_backend *backend = bpf_map_lookup_elem(MAP(lb_backends), &id);

	return backend && lb_reduced(clusters, backend->cluster_id) != LB_FULL ? backend : NULL;
}

/* Whether what is established with this cluster ends. It may be taken in again before `lb_evicted` says so. */
static __always_inline bool lb_is_evicted(__u16 cluster_id)
{
	struct lb_clusters *clusters = lb_all_clusters();
	struct lb_evicted *all;
	__u32 first = 0;

	if (!clusters || lb_reduced(clusters, cluster_id) != LB_FULL)
		return false;
	all = bpf_map_lookup_elem(MAP(lb_evicted), &first);
	return all && all->evicted[cluster_id % LB_CLUSTERS];
}

/* The same for one that new connections may be given. */
static __always_inline struct lb_backend *lb_active(const struct lb_clusters *clusters, __u32 id)
{
	struct lb_backend *backend = lb_backend_of(clusters, id);

	return backend && backend->state == BACKEND_ACTIVE ? backend : NULL;
}

#endif

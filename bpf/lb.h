/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which backend answers for a service: the lookup and the choice, for whatever hook asks. The choice is a function of a
 * seed: a random one spreads, the same one stays with its backend while backends and shares stay as they are. */
#ifndef CLUSTERMESH_LB_H
#define CLUSTERMESH_LB_H

#include "address.h"
#include "lb_affinity.h"
#include "lb_maglev.h"
#include "lb_random.h"
#include "report.h"

/* What a step says: go on with the address as it is, with the address it wrote, or refuse. */
enum verdict { CONTINUE, TRANSLATED, REJECT };

struct peer {
	struct address address;
	__be16 port;
};

/* A backend, and the service it was chosen for. */
struct lb_chosen {
	struct address address;
	__be16 port;
	__u16 flags; /* enum service_flag */
	__u32 backend_id;
	__u32 service_id;
};

/* The service that this is, NULL where it is none; `key` becomes that of the entry. While the entry of those outside is not
 * there yet they have that of all. */
static __always_inline struct lb_service *lb_find(struct lb_service_key *key, bool outside)
{
	struct lb_service *service = bpf_map_lookup_elem(MAP(lb_services), key), *external = NULL;

	if (!service || !outside)
		return service;
	if (service->kind == KIND_CLUSTER_IP)
		return NULL;
	if (service->flags & SERVICE_EXTERNAL) {
		key->scope = SCOPE_EXTERNAL;
		external = bpf_map_lookup_elem(MAP(lb_services), key);
	}
	return external ? external : service;
}

/* How often a service is looked at where nobody was found. What its number led to is taken away once it has another one, and
 * the slots of a group once that is gone; a program may be held up for as long as it likes in between, so that no delay of the
 * deletion would be long enough. The second look is in vain only where it is held up and the service changed once more; a third
 * would be too much for the verifier where all is inlined (BCC). */
#define LB_LOOKS 2

/* Whether this client may ask from outside for the service at `at`. */
static __always_inline bool lb_may_ask(const struct lb_service_key *at, const struct lb_service *service,
				       const struct address *client)
{
	struct lb_source_range_key key = { .prefix_length = 32 + 128, .address = *client };
	__u8 *family;

	for (__u32 look = 0; look < LB_LOOKS && service && service->service_id != key.service_id; look++) {
		if (!(service->flags & SERVICE_SOURCE_RANGES))
			return true;
		key.service_id = service->service_id;
		family = bpf_map_lookup_elem(MAP(lb_source_ranges), &key);
		if (family)
			return *family == (is_ipv4(client) ? 4 : 6);
		service = bpf_map_lookup_elem(MAP(lb_services), at);
	}
	return false;
}

/* A backend anew: its id too, the block of slots it stands in, as lb_where() has it, and the service as it is by then. A
 * table's backend whose block is not found is none to stay with: whoever is to stay with one is given a drawn one. */
static __always_inline struct lb_backend *lb_pick(const struct lb_clusters *clusters, const struct lb_service_key *key,
						  struct lb_service *service, __u32 seed, __u32 *id, __u32 *where)
{
	struct lb_service *again;
	struct lb_backend *backend;
	__u64 found;

	*where = LB_NOWHERE;
	if (service->algorithm == ALGORITHM_MAGLEV) {
		*id = lb_maglev_of(service->service_id, seed);
		*where = service->affinity_seconds ? lb_where(service->service_id, service->groups, *id, 0) : 0;
	}
	if (*where == LB_NOWHERE)
		*id = lb_drawn(clusters, service, &seed, where);
	backend = lb_active(clusters, *id);
	if (backend)
		return backend;
	if (*id != LB_OUT)
		count(REASON_PICK_RETRIED);
	for (__u32 look = 0; look < LB_LOOKS; look++) {
		found = lb_search(service->service_id, seed);
		*where = found >> 32;
		*id = found;
		backend = lb_backend_of(clusters, *id);
		if (backend)
			return backend;
		again = bpf_map_lookup_elem(MAP(lb_services), key);
		if (!again || (found == LB_NONE && again->service_id == service->service_id))
			return NULL;
		*service = *again;
	}
	return NULL;
}

/* A backend of the service `found` at `key`, REJECT where nobody answers. `client` is asked for only where it has affinity. */
static __always_inline enum verdict lb_choose(const struct lb_service_key *key, const struct lb_service *found,
					      const struct address *client, __u32 seed, struct lb_chosen *to)
{
	struct lb_clusters *clusters = lb_all_clusters();
	struct lb_service service = *found;
	struct lb_affinity_key stays = { .service_id = service.service_id };
	struct lb_backend *backend = NULL;
	__u32 id, where = 0;

	if (!clusters || !service.groups || !service.weight)
		return REJECT;
	if (service.affinity_seconds) {
		stays.client = *client;
		id = lb_stays(&stays, &service);
		backend = lb_active(clusters, id);
	}
	if (!backend) {
		backend = lb_pick(clusters, key, &service, seed, &id, &where);
		if (!backend)
			return REJECT;
		stays.service_id = service.service_id;
		if (service.affinity_seconds)
			lb_stay(&stays, id, where);
	}
	to->address = backend->address;
	to->port = backend->port;
	to->flags = service.flags;
	to->backend_id = id;
	to->service_id = service.service_id;
	return TRANSLATED;
}

#endif

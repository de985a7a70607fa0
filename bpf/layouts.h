/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Every layout the agent and the programs share. agent/bpf/layouts.py says the same in Python; a test compares each
 * field. Addresses and ports are in network order, all else in host order; padding is zero, since keys are compared
 * byte by byte. A change of any layout needs a new LAYOUT_VERSION in agent/bpf/layouts.py.
 *
 *   lb_services  where a service is called         -> its id, how many groups answer, their weight
 *   lb_groups    service id, block of groups       -> the cluster each is of, how many backends, its part of the weight
 *   lb_slots     service id, group, block of slots -> ids of backends
 *   lb_backends  id                                -> where it is, its state
 *   lb_clusters  0                                 -> what each cluster does not get of its share
 *   lb_evicted   0                                 -> which clusters lose what is established, too
 *   lb_maglev    service id                        -> a table of ids of backends, where the algorithm is MAGLEV
 *   lb_affinity  a client, service id              -> the backend it stays with; the programs write it
 *   lb_source_ranges  service id, prefix           -> who of those outside may ask
 *
 * A reader goes down this list, a writer up: what is named is there before, and goes after, what names it. Fields marked
 * (0) are zero today and keep their meaning from now on, so that what they are for needs no new layout. */
#ifndef CLUSTERMESH_LAYOUTS_H
#define CLUSTERMESH_LAYOUTS_H

#include <linux/bpf.h>
#include <linux/types.h>

/* Of either family: IPv4 is mapped into IPv6, ::ffff:a.b.c.d. */
struct address {
	__be32 word[4];
};
_Static_assert(sizeof(struct address) == 16, "address");

/* What a service's address is: of the cluster, or a way in from outside. */
enum service_kind {
	KIND_CLUSTER_IP,
	KIND_NODE_PORT,
	KIND_LOAD_BALANCER,
	KIND_EXTERNAL_IP,
	KIND_HOST_PORT,
};

/* Who asks: an address may have other backends for those outside (externalTrafficPolicy) than for those inside. */
enum service_scope {
	SCOPE_ANY,
	SCOPE_INTERNAL,
	SCOPE_EXTERNAL,
};

/* How a backend is chosen inside a service. MAGLEV: by a table of its own for each service_id. */
enum algorithm {
	ALGORITHM_RANDOM,
	ALGORITHM_MAGLEV,
};

enum service_flag {
	SERVICE_SOURCE_RANGES = 1, /* those outside must be in lb_source_ranges */
	SERVICE_EXTERNAL = 2,      /* those outside have an entry of their own, of SCOPE_EXTERNAL */
	SERVICE_KEEP_SOURCE = 4,   /* its backends are on this node, and see the address of whoever asks */
};

/* Those inside (sockets, pods) find SCOPE_ANY; those outside find SCOPE_ANY and, where that has SERVICE_EXTERNAL,
 * SCOPE_EXTERNAL instead. To them KIND_CLUSTER_IP is nothing. */
struct lb_service_key {
	struct address address;
	__be16 port;
	__u8 protocol;
	__u8 scope; /* enum service_scope */
};
_Static_assert(sizeof(struct lb_service_key) == 20, "lb_service_key");

struct lb_service {
	__u32 service_id;
	__u32 weight;           /* of all groups together */
	__u32 affinity_seconds; /* how long a client stays with its backend; 0: it does not */
	__u16 groups;           /* those of a lower tier first */
	__u16 flags;            /* enum service_flag */
	__u8 kind;              /* enum service_kind */
	__u8 algorithm;         /* enum algorithm */
	__u8 tiers;             /* beyond the first (0) */
	__u8 pad;
};
_Static_assert(sizeof(struct lb_service) == 20, "lb_service");

struct lb_groups_key {
	__u32 service_id;
	__u16 block;
	__u16 pad;
};
_Static_assert(sizeof(struct lb_groups_key) == 8, "lb_groups_key");

/* The backends one cluster has for a service. A group's weight is what its weight_end is beyond that of the group before
 * it: so the group that a number below the service's weight falls into is found by halving. */
struct lb_group {
	__u32 weight_end;
	__u16 cluster_id;
	__u16 slots; /* how many backends */
	__u8 tier;   /* groups of a tier are asked when those below have nobody (0) */
	__u8 pad[3];
};
_Static_assert(sizeof(struct lb_group) == 12, "lb_group");

/* Groups are kept in blocks: few clusters cost one lookup. What is left of the last block repeats the last weight_end. */
enum { GROUPS_PER_BLOCK = 8 };

struct lb_groups {
	struct lb_group groups[GROUPS_PER_BLOCK];
};
_Static_assert(sizeof(struct lb_groups) == 96, "lb_groups");

/* Slots are kept in blocks: a service of ten backends costs one entry, and one write changes them all. */
enum { SLOTS_PER_BLOCK = 16 };

struct lb_slots_key {
	__u32 service_id;
	__u16 group;
	__u16 block;
};
_Static_assert(sizeof(struct lb_slots_key) == 8, "lb_slots_key");

/* What is left of the last block is filled up with any of the group's backends. */
struct lb_slots {
	__u32 backend_ids[SLOTS_PER_BLOCK];
};
_Static_assert(sizeof(struct lb_slots) == 64, "lb_slots");

enum backend_state {
	BACKEND_ACTIVE,
	BACKEND_TERMINATING,
	BACKEND_QUARANTINED,
	BACKEND_MAINTENANCE,
};

/* Only an active backend is given to new connections. */
struct lb_backend {
	struct address address;
	__be16 port;
	__u8 protocol;
	__u8 state;
	__u16 cluster_id;
	__u16 weight; /* among those of its group; 0 is as all others (0) */
	__u16 zone;   /* a number for topology.kubernetes.io/zone (0) */
	__u16 pad;
};
_Static_assert(sizeof(struct lb_backend) == 28, "lb_backend");

/* What a cluster does NOT get of the share its weight gives it, in every service: 0, as in a new map, is all of it,
 * LB_FULL takes it out exactly. By cluster id, all in one value: one write drains, ramps or takes out a whole cluster, and
 * one lookup reads them all. */
enum { LB_FULL = 65535, LB_CLUSTERS = 512 };

struct lb_clusters {
	__u16 reduced[LB_CLUSTERS];
};
_Static_assert(sizeof(struct lb_clusters) == 1024, "lb_clusters");

/* Of a cluster that is out (LB_FULL), by its id: whether what is established with it ends, too (1), or goes on (0). */
struct lb_evicted {
	__u8 evicted[LB_CLUSTERS];
};
_Static_assert(sizeof(struct lb_evicted) == 512, "lb_evicted");

/* A prime: the table of Maglev (NSDI 2016, 3.4), in which each backend has as many places as its part. Those of equal
 * backends are equal on every node. */
enum { MAGLEV_PLACES = 1021 };

struct lb_maglev {
	__u32 backend_ids[MAGLEV_PLACES];
};
_Static_assert(sizeof(struct lb_maglev) == 4084, "lb_maglev");

/* The client is an address, or for a socket the cookie of its network namespace: in words 0 and 1, word 2 all ones. */
struct lb_affinity_key {
	struct address client;
	__u32 service_id;
	__u32 pad;
};
_Static_assert(sizeof(struct lb_affinity_key) == 24, "lb_affinity_key");

/* The block of lb_slots it was last seen in: where it stands there no more it is looked for, and what the service has no
 * more is left. */
struct lb_affinity {
	__u64 used_ns; /* by CLOCK_MONOTONIC; up to a second behind */
	__u32 backend_id;
	__u16 group;
	__u16 block;
};
_Static_assert(sizeof(struct lb_affinity) == 16, "lb_affinity");

struct lb_source_range_key {
	__u32 prefix_length; /* 32, and of the address's 128 bits */
	__u32 service_id;
	struct address address;
};
_Static_assert(sizeof(struct lb_source_range_key) == 24, "lb_source_range_key");

/* The service a connected socket means, and the backend that it does so of: a connect that failed has left it with another. */
struct lb_meant {
	struct address address;
	struct address backend;
	__be16 port;
	__be16 backend_port;
	__u32 backend_id;
	__u8 protocol;
	__u8 suspected; /* of being closed: see sweep_meant */
	__u8 pad[6];
};
_Static_assert(sizeof(struct lb_meant) == 48, "lb_meant");

/* Sockets are kept in sets, by their cookies, which count up: there is room for as many, as long as no set has more than
 * its ways. A way is taken by who connects, and free again (0) once that is closed. */
enum { MEANT_SETS = 16384, MEANT_WAYS = 4 };

struct lb_meant_set {
	__u64 cookies[MEANT_WAYS];
	struct lb_meant meant[MEANT_WAYS];
};
_Static_assert(sizeof(struct lb_meant_set) == 224, "lb_meant_set");

/* What sweep_meant is run over: a head, whose first byte says whether to free, and not more cookies than this. */
enum { SWEEP_HEAD = 16, SWEEP_MOST = 64 };

struct lb_reverse_key {
	__u64 cookie;
	struct address address;
	__be16 port;
	__u8 pad[6];
};
_Static_assert(sizeof(struct lb_reverse_key) == 32, "lb_reverse_key");

/* `protocol` is that of a connected socket, for which lb_meant had no room; 0 of datagrams, and of what older versions wrote. */
struct lb_reverse {
	struct address address;
	__be16 port;
	__u16 protocol;
};
_Static_assert(sizeof(struct lb_reverse) == 20, "lb_reverse");

struct ipcache_cidr_key {
	__u32 prefix_length; /* of 128 bits */
	struct address address;
};
_Static_assert(sizeof(struct ipcache_cidr_key) == 20, "ipcache_cidr_key");

/* tunnel_endpoint is the node to send to, 0 for this one; key is 255 where traffic is encrypted by WireGuard, else 0. */
struct ipcache_entry {
	__u32 identity;
	struct address tunnel_endpoint;
	__u8 key;
	__u8 flags; /* (0) */
	__u16 pad;
};
_Static_assert(sizeof(struct ipcache_entry) == 24, "ipcache_entry");

/* What a pod may send from: its own address of each family, all zeros where it has none. */
struct pod_source {
	struct address ipv4; /* mapped */
	struct address ipv6;
};
_Static_assert(sizeof(struct pod_source) == 32, "pod_source");

/* A packet's ends, as it comes to a program. */
struct ct_key {
	struct address source;
	struct address destination;
	__be16 source_port;
	__be16 destination_port;
	__u8 protocol;
	__u8 pad[3];
};
_Static_assert(sizeof(struct ct_key) == 40, "ct_key");

enum ct_flag {
	CT_REPLY = 1,        /* of the packets that come back */
	CT_ESTABLISHED = 2,  /* more has been seen in this direction than what opens a connection */
	CT_FIN = 4,          /* this direction has ended */
	CT_FIN_OTHER = 8,    /* the other one has */
	CT_RESET = 16,       /* a reset was seen in either; nobody checked that it is genuine */
	CT_LENT = 32,        /* the backend sees a port of ours as the client's */
	/* 64: an older version's entries, which pinned maps keep, say so that they are of no service */
	CT_OUTSIDE = 128,    /* the client is outside */
	CT_AT_EGRESS = 256,  /* is translated where it leaves, by the program of the device that leads outside */
	CT_REFUSED = 512,    /* with CT_RESET: the last one was the backend's */
};

/* How the packets of a tuple go on. It is decided with the first, so that none overtakes another. */
enum way {
	WAY_STACK, /* as the kernel sends them */
	WAY_BACK,  /* out of the device they came from */
	WAY_PEER,  /* into the pod behind way_device */
	WAY_NEIGH, /* out of way_device, past the kernel's filters */
};

/* What packets of a tuple get as their ends instead. A connection is two of these, and the pair of one is found at the ends
 * it gives, swapped. */
struct ct_entry {
	struct address source;
	struct address destination;
	__be16 source_port;
	__be16 destination_port;
	__u32 service_id;
	__u32 backend_id;
	__u32 expires;     /* in 2^30 ns of CLOCK_MONOTONIC; what is older may be taken away or over */
	__u32 from_device; /* from which such a packet may come: its source was checked (0: not yet), or it is an answer to a
			    * client outside, and that the tunnel; of a client outside what it is to acknowledge of the
			    * backend's answer (0: there is none) */
	__u32 way_device;
	__u32 identity; /* (0) */
	__u16 flags;    /* enum ct_flag */
	__u8 way;       /* enum way */
	__u8 pad;
	__u64 packets; /* counted without locks */
	__u64 bytes;
	__u32 mtu;    /* of the way; 0 is not checked */
	__u32 policy; /* (0) */
};
_Static_assert(sizeof(struct ct_entry) == 88, "ct_entry");

/* Is known to be no service's: nothing is translated. */
struct ct_direct {
	__u32 expires;     /* as in ct_entry */
	__u32 from_device; /* as in ct_entry */
	__u16 flags;       /* enum ct_flag */
	__u16 pad;
};
_Static_assert(sizeof(struct ct_direct) == 12, "ct_direct");

/* A fragmented packet. */
struct ct_fragment_key {
	struct address source;
	struct address destination;
	__u32 id;
	__u8 protocol;
	__u8 pad[3];
};
_Static_assert(sizeof(struct ct_fragment_key) == 40, "ct_fragment_key");

struct ct_fragment {
	__be16 source_port;
	__be16 destination_port;
	__u32 expires; /* as in ct_entry */
};
_Static_assert(sizeof(struct ct_fragment) == 8, "ct_fragment");

enum config_flag {
	CONFIG_REDIRECT = 1, /* packets may go to pods and to other nodes past the kernel's filters */
};

/* This node. Addresses are zero where it has none of that family. */
struct node_config {
	struct address node4; /* what others see instead of a client outside, or of a pod that calls itself */
	struct address node6;
	struct address tunnel4; /* the same to those behind the tunnel */
	struct address tunnel6;
	__u32 tunnel_device; /* 0: none */
	__u16 port_first;    /* that are lent, host order, port_last among them; 0: none */
	__u16 port_last;
	__u16 mtu;   /* (0) */
	__u16 flags; /* enum config_flag */
};
_Static_assert(sizeof(struct node_config) == 76, "node_config");

/* The node's end of the veth that a pod's address is behind. */
struct pod_device {
	__u32 ifindex;
	__u32 flags; /* (0) */
};
_Static_assert(sizeof(struct pod_device) == 8, "pod_device");

enum xdp_mode {
	XDP_NATIVE = 1,  /* the driver runs the program */
	XDP_GENERIC = 2, /* the kernel does, on what the driver has made of a frame */
};

/* A device that runs `xdp_outside`: what comes by it for this machine has its address, and frames of another one that runs it
 * in the same mode may leave by it. */
struct xdp_device {
	__u32 head; /* the first four bytes of its Ethernet address, as they are in a frame */
	__u16 tail; /* the last two */
	__u16 mode; /* enum xdp_mode */
};
_Static_assert(sizeof(struct xdp_device) == 8, "xdp_device");

/* The identities of machines; every other identity is a pod's, as far as encryption goes. */
enum node_identity {
	IDENTITY_HOST = 1,
	IDENTITY_REMOTE_NODE = 6,
	IDENTITY_KUBE_APISERVER = 7,
};

/* What happened, and why something was dropped: the index into the map `metrics`. Append only. */
enum reason {
	REASON_CONNECT,              /* a socket was connected to a backend instead of the service */
	REASON_DATAGRAM,             /* an unconnected datagram was sent to a backend instead of the service */
	REASON_REPLY,                /* a reply was shown as coming from the service */
	REASON_PICK_RETRIED,         /* a slot that was picked had no usable backend: another was tried */
	REASON_REVERSE_LOST,         /* lb_reverse_sk did not take an entry: the peer will show as the backend */
	REASON_DROP_NO_BACKEND,      /* refused: the service has no usable backend */
	REASON_DROP_CLEAR_INGRESS,   /* dropped: pod to pod traffic came in without encryption */
	REASON_DROP_CLEAR_EGRESS,    /* dropped: pod to pod traffic was about to leave without encryption */
	REASON_EVENT_LOST,           /* an event was not told of: whoever reads them is behind */
	REASON_CONNECT_DIRECT,       /* a socket was connected to an address that is no service's */
	REASON_DROP_SOURCE,          /* dropped: a pod sent from an address that is not its own */
	REASON_NAT_NEW,              /* a packet began a connection to a service: it has a backend now */
	REASON_NAT_FORWARD,          /* a packet to a service went to its backend */
	REASON_NAT_REPLY,            /* a packet of a backend went back as the service's */
	REASON_NAT_ERROR,            /* an ICMP error about a translated packet was translated */
	REASON_DROP_NO_CONNECTION,   /* refused: a TCP packet to a service is of no connection, or of one whose backend is gone */
	REASON_DROP_NO_PORT,         /* refused: no port could be lent to tell two connections to one backend apart */
	REASON_DROP_SCTP_PORT,       /* refused: SCTP cannot be sent to another port than the one it names */
	REASON_DROP_CT_FULL,         /* refused: conntrack took no entry */
	REASON_DROP_NO_ADDRESS,      /* dropped: this node has no address that the backend could answer to */
	REASON_DROP_SOURCE_RANGE,    /* dropped: the service may not be called from this address outside */
	REASON_DROP_NO_ROUTE,        /* refused: no way to the backend is known */
	REASON_DROP_TOO_LARGE,       /* refused: the packet is larger than its way takes */
	REASON_DROP_BIND,            /* refused: a socket was to be bound to the port of a node port or host port */
	REASON_MEANT_FULL,           /* a connected socket found no room in lb_meant: what it means is in lb_reverse_sk, an LRU map */
	REASON_DROP_HOPS,            /* refused: the packet may go no further */
	REASON_DROP_BROKEN,          /* dropped: the kernel would not let the packet, or its answer, be made */
	REASONS,
};

/* What an event is, for whoever listens to some of them only: a bit of events_wanted.types. */
enum event_type {
	EVENT_DROP,
	EVENT_LB,    /* an address was translated */
	EVENT_TRACE, /* a connection was opened */
};

enum { EVENT_HEAD = 64 };

/* What is zero is not known. The addresses are those before anything was changed, `new_` where they were changed. */
struct event {
	__u64 time;   /* in ns, as bpf_ktime_get_ns() and CLOCK_MONOTONIC have it */
	__u64 cookie; /* the socket's */
	struct address source;
	struct address destination;
	struct address new_source;
	struct address new_destination;
	__be16 source_port;
	__be16 destination_port;
	__be16 new_source_port;
	__be16 new_destination_port;
	__u32 source_identity;      /* (0) */
	__u32 destination_identity; /* (0) */
	__u32 ifindex;
	__u16 cpu;
	__u8 reason; /* enum reason */
	__u8 type;   /* enum event_type */
	__u8 protocol;
	__u8 head_size;        /* how much there is of `head` */
	__u8 pad[6];           /* (0), room for what a policy says */
	__u8 head[EVENT_HEAD]; /* of the packet, from its network header on: says what the fields above do not */
};
_Static_assert(sizeof(struct event) == 176, "event");

/* Who listens renews it all the time: killed, he listens no more. */
struct events_wanted {
	__u64 until; /* as event.time */
	__u32 types; /* a bit for each */
	__u32 pad;
};
_Static_assert(sizeof(struct events_wanted) == 16, "events_wanted");

#if defined(__bpf__) || defined(CLUSTERMESH_BCC)
#include "maps.h"

/* Which service is called at this address, port and protocol? */
DECLARE_MAP(lb_services, BPF_MAP_TYPE_HASH, struct lb_service_key, struct lb_service, 65536, BPF_F_NO_PREALLOC);

/* Which clusters answer, and how much of the service is each one's part? */
DECLARE_MAP(lb_groups, BPF_MAP_TYPE_HASH, struct lb_groups_key, struct lb_groups, 131072, BPF_F_NO_PREALLOC);

/* Which backends has this group? */
DECLARE_MAP(lb_slots, BPF_MAP_TYPE_HASH, struct lb_slots_key, struct lb_slots, 131072, BPF_F_NO_PREALLOC);

/* Where is the backend with this id? */
DECLARE_MAP(lb_backends, BPF_MAP_TYPE_HASH, __u32, struct lb_backend, 131072, BPF_F_NO_PREALLOC);

/* What is taken from each cluster's share, everywhere? */
DECLARE_MAP(lb_clusters, BPF_MAP_TYPE_ARRAY, __u32, struct lb_clusters, 1, 0);

/* Of which clusters that are out do established connections end? */
DECLARE_MAP(lb_evicted, BPF_MAP_TYPE_ARRAY, __u32, struct lb_evicted, 1, 0);

/* Which backend does this service's table give? */
DECLARE_MAP(lb_maglev, BPF_MAP_TYPE_HASH, __u32, struct lb_maglev, 65536, BPF_F_NO_PREALLOC);

/* Which backend does this client stay with? */
DECLARE_MAP(lb_affinity, BPF_MAP_TYPE_LRU_HASH, struct lb_affinity_key, struct lb_affinity, 65536, 0);

/* May this address ask this service from outside? Those of the range's family may, which is the value, 4 or 6: a short
 * IPv6 prefix has all of IPv4 in it. */
DECLARE_MAP(lb_source_ranges, BPF_MAP_TYPE_LPM_TRIE, struct lb_source_range_key, __u8, 65536, BPF_F_NO_PREALLOC);

/* Which service does this connected socket mean? By its cookie, of which the rest by MEANT_SETS is the key. */
DECLARE_MAP(lb_meant, BPF_MAP_TYPE_ARRAY, __u32, struct lb_meant_set, MEANT_SETS, 0);

/* Which service did this socket mean when it was sent to this backend? */
DECLARE_MAP(lb_reverse_sk, BPF_MAP_TYPE_LRU_HASH, struct lb_reverse_key, struct lb_reverse, 65536, 0);

/* Who has exactly this address, and behind which node? */
DECLARE_MAP(ipcache, BPF_MAP_TYPE_HASH, struct address, struct ipcache_entry, 512000, BPF_F_NO_PREALLOC);

/* Who has the longest prefix of this address, where nobody has exactly it? */
DECLARE_MAP(ipcache_cidr, BPF_MAP_TYPE_LPM_TRIE, struct ipcache_cidr_key, struct ipcache_entry, 131072,
	    BPF_F_NO_PREALLOC);

/* Which addresses has the pod behind this device, by its index? */
DECLARE_MAP(pod_sources, BPF_MAP_TYPE_HASH, __u32, struct pod_source, 4096, BPF_F_NO_PREALLOC);

/* What becomes of packets with these ends? */
DECLARE_MAP(ct, BPF_MAP_TYPE_LRU_HASH, struct ct_key, struct ct_entry, 262144, 0);

/* Do packets with these ends go to no service? Apart from `ct`, so that they push nothing out of that. */
DECLARE_MAP(ct_direct, BPF_MAP_TYPE_LRU_HASH, struct ct_key, struct ct_direct, 65536, 0);

/* Which ports had the first fragment of this packet? */
DECLARE_MAP(ct_fragments, BPF_MAP_TYPE_LRU_HASH, struct ct_fragment_key, struct ct_fragment, 8192, 0);

/* What is this node? */
DECLARE_MAP(node_config, BPF_MAP_TYPE_ARRAY, __u32, struct node_config, 1, 0);

/* Which device is this local pod's address behind? */
DECLARE_MAP(pod_devices, BPF_MAP_TYPE_HASH, struct address, struct pod_device, 65536, BPF_F_NO_PREALLOC);

/* Does this device, by its index, run the program of frames? */
DECLARE_MAP(xdp_devices, BPF_MAP_TYPE_HASH, __u32, struct xdp_device, 256, BPF_F_NO_PREALLOC);

/* How often did this happen? */
DECLARE_MAP(metrics, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, __u64, REASONS, 0);

/* What happened just now? Read by one reader at a time: the agent, for all who ask it. */
DECLARE_RING(events, 1 << 20);

/* Does anybody want to know? */
DECLARE_MAP(events_wanted, BPF_MAP_TYPE_ARRAY, __u32, struct events_wanted, 1, 0);

#endif
#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* Every layout the agent and the programs share. agent/bpf/layouts.py says the same in Python; a test compares each
 * field. Addresses and ports are in network order, all else in host order; padding is zero, since keys are compared
 * byte by byte. A change of any layout needs a new LAYOUT_VERSION in agent/bpf/layouts.py. */
#ifndef CLUSTERMESH_LAYOUTS_H
#define CLUSTERMESH_LAYOUTS_H

#include <linux/bpf.h>
#include <linux/types.h>

/* Slot 0 is the service itself and holds the count; slots 1 to count hold a backend id each. */
struct lb4_service_key {
	__be32 address;
	__be16 port;
	__u16 slot;
	__u8 protocol;
	__u8 pad[3];
};
_Static_assert(sizeof(struct lb4_service_key) == 12, "lb4_service_key");

struct lb4_service {
	__u32 backend_id;
	__u16 count;
	__u16 flags;
};
_Static_assert(sizeof(struct lb4_service) == 8, "lb4_service");

enum backend_state {
	BACKEND_ACTIVE,
	BACKEND_TERMINATING,
	BACKEND_QUARANTINED,
	BACKEND_MAINTENANCE,
};

/* Only an active backend is given to new connections. */
struct lb4_backend {
	__be32 address;
	__be16 port;
	__u8 protocol;
	__u8 state;
	__u16 cluster_id;
	__u16 pad;
};
_Static_assert(sizeof(struct lb4_backend) == 12, "lb4_backend");

struct lb4_reverse_key {
	__u64 cookie;
	__be32 address;
	__be16 port;
	__u16 pad;
};
_Static_assert(sizeof(struct lb4_reverse_key) == 16, "lb4_reverse_key");

struct lb4_reverse {
	__be32 address;
	__be16 port;
	__u16 pad;
};
_Static_assert(sizeof(struct lb4_reverse) == 8, "lb4_reverse");

struct ipcache4_cidr_key {
	__u32 prefix_length;
	__be32 address;
};
_Static_assert(sizeof(struct ipcache4_cidr_key) == 8, "ipcache4_cidr_key");

/* tunnel_endpoint is the node to send to, 0 for this one; key is 255 where traffic is encrypted by WireGuard, else 0. */
struct ipcache4_entry {
	__u32 identity;
	__be32 tunnel_endpoint;
	__u8 key;
	__u8 pad[3];
};
_Static_assert(sizeof(struct ipcache4_entry) == 12, "ipcache4_entry");

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
	REASON_PICK_RETRIED,         /* the first slot picked had no usable backend, a later one had */
	REASON_REVERSE_LOST,         /* lb4_reverse_sk did not take an entry: the peer will show as the backend */
	REASON_DROP_NO_BACKEND,      /* refused: the service has no usable backend */
	REASON_DROP_CLEAR_INGRESS,   /* dropped: pod to pod traffic came in without encryption */
	REASON_DROP_CLEAR_EGRESS,    /* dropped: pod to pod traffic was about to leave without encryption */
	REASONS,
};

#ifdef __bpf__
#include <bpf/bpf_helpers.h>

/* Which backends answer for this address, port and protocol? */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, struct lb4_service_key);
	__type(value, struct lb4_service);
} lb4_services SEC(".maps");

/* Where is the backend with this id? */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072);
	__type(key, __u32);
	__type(value, struct lb4_backend);
} lb4_backends SEC(".maps");

/* Which service did this socket mean when it was sent to this backend? */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct lb4_reverse_key);
	__type(value, struct lb4_reverse);
} lb4_reverse_sk SEC(".maps");

/* Who has exactly this address, and behind which node? */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 512000);
	__type(key, __be32);
	__type(value, struct ipcache4_entry);
} ipcache4 SEC(".maps");

/* Who has the longest prefix of this address, where nobody has exactly it? */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct ipcache4_cidr_key);
	__type(value, struct ipcache4_entry);
} ipcache4_cidr SEC(".maps");

/* How often did this happen? */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, REASONS);
	__type(key, __u32);
	__type(value, __u64);
} metrics SEC(".maps");

#endif /* __bpf__ */
#endif

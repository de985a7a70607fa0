/* SPDX-License-Identifier: Apache-2.0 */
/* Strict mode, on the device that carries traffic between nodes: there, pod to pod traffic is inside WireGuard or it is
 * not at all. Only addresses are looked at, so fragments and options need no care. */
#ifndef CLUSTERMESH_STRICT_H
#define CLUSTERMESH_STRICT_H

#include <stdbool.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>

#include "metrics.h"

/* "Not mine, ask the next": TCX_NEXT under tcx, and under clsact the next filter. TC_ACT_OK would end the chain. */
#define NEXT TC_ACT_UNSPEC

static __always_inline bool is_node(const struct ipcache4_entry *entry)
{
	return entry->identity == IDENTITY_HOST || entry->identity == IDENTITY_REMOTE_NODE ||
	       entry->identity == IDENTITY_KUBE_APISERVER;
}

/* A pod of the host's network has its node's address: were that a pod's, the tunnels themselves would be dropped. And a
 * node's address inside a pod CIDR (Cilium's router address) is reached through WireGuard as the pods are. So an exact
 * entry of a node says nothing, and leaves the CIDR to be asked. */
static __always_inline bool is_mesh_pod(__be32 address)
{
	struct ipcache4_cidr_key key = { .prefix_length = 32, .address = address };
	struct ipcache4_entry *entry = bpf_map_lookup_elem(&ipcache4, &address);

	if (entry && !is_node(entry) && entry->tunnel_endpoint != address)
		return true;
	entry = bpf_map_lookup_elem(&ipcache4_cidr, &key);
	return entry && !is_node(entry);
}

/* Works on any device, with or without a link-layer header: the read starts at the network header. */
static __always_inline int require_encryption(struct __sk_buff *skb, enum reason reason)
{
	struct iphdr ip;

	if (skb->protocol != bpf_htons(ETH_P_IP))
		return NEXT;
	if (bpf_skb_load_bytes_relative(skb, 0, &ip, sizeof(ip), BPF_HDR_START_NET))
		return NEXT; /* too short to name a source and a destination */
	if (!is_mesh_pod(ip.saddr) || !is_mesh_pod(ip.daddr))
		return NEXT;
	count(reason);
	return TC_ACT_SHOT;
}

#endif

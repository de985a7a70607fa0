/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Strict mode, on the device that carries traffic between nodes: there, pod to pod traffic is inside WireGuard or it is
 * not at all. Only addresses are looked at, so fragments, options and extension headers need no care. */
#ifndef CLUSTERMESH_STRICT_H
#define CLUSTERMESH_STRICT_H

#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include "address.h"
#include "drop.h"

static __always_inline bool is_node(const struct ipcache_entry *entry)
{
	return entry->identity == IDENTITY_HOST || entry->identity == IDENTITY_REMOTE_NODE ||
	       entry->identity == IDENTITY_KUBE_APISERVER;
}

/* A pod of the host's network has its node's address: were that a pod's, the tunnels themselves would be dropped. And a
 * node's address inside a pod CIDR (Cilium's router address) is reached through WireGuard as the pods are. So an exact
 * entry of a node says nothing, and leaves the CIDR to be asked. Neighbours are found in clear, whatever a CIDR claims. */
static __always_inline bool is_mesh_pod(const struct address *address)
{
	struct ipcache_cidr_key key = { .prefix_length = 128, .address = *address };
	struct ipcache_entry *entry;

	if (is_of_the_link(address))
		return false;
	entry = bpf_map_lookup_elem(MAP(ipcache), address);
	if (entry && !is_node(entry) && !is_same_address(&entry->tunnel_endpoint, address))
		return true;
	entry = bpf_map_lookup_elem(MAP(ipcache_cidr), &key);
	return entry && !is_node(entry);
}

/* Source and destination of a packet; false where it has none. Works on any device, with or without a link-layer header:
 * the read starts at the network header. */
static __always_inline bool read_addresses(struct __sk_buff *skb, struct address ends[2])
{
	struct iphdr ip;

	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return !bpf_skb_load_bytes_relative(skb, 8, ends, 32, BPF_HDR_START_NET);
	if (skb->protocol != bpf_htons(ETH_P_IP))
		return false;
	if (bpf_skb_load_bytes_relative(skb, 0, &ip, sizeof(ip), BPF_HDR_START_NET))
		return false;
	ends[0] = mapped(ip.saddr);
	ends[1] = mapped(ip.daddr);
	return true;
}

static __always_inline int require_encryption(struct __sk_buff *skb, enum reason reason)
{
	struct address ends[2];

	if (!read_addresses(skb, ends))
		return NEXT;
	if (!is_mesh_pod(&ends[0]) || !is_mesh_pod(&ends[1]))
		return NEXT;
	return dropped(reason);
}

#endif

/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How maps and constants are declared and named, in a form that both loaders take. libbpf makes the maps from their
 * declarations. BCC, which compiles on the node (-DCLUSTERMESH_BCC), knows no declarations by BTF, and its own would not
 * take pinned maps: there each map is a number, which agent/bpf/bcc.py replaces by a descriptor in the compiled programs,
 * and two functions that return what was declared, which are read and never run. Nothing but the forms in this file
 * differs between the two. */
#ifndef CLUSTERMESH_MAPS_H
#define CLUSTERMESH_MAPS_H

#ifdef CLUSTERMESH_BCC

#define SEC(name)
#define SUBPROGRAM static __always_inline
#define DECLARE_LICENSE(name) /* BCC is told by its caller */
#define DECLARE_SIZES(name, map_type, key_size, value_size, size, flags)                                               \
	enum { name##_number = __COUNTER__ + 1 };                                                                      \
	__u64 map_##name(void *ctx)                                                                                    \
	{                                                                                                              \
		return (__u64)name##_number << 48 | (__u64)(map_type) << 40 | (__u64)(key_size) << 32 | (value_size);  \
	}                                                                                                              \
	__u64 size_##name(void *ctx)                                                                                   \
	{                                                                                                              \
		return (__u64)(flags) << 32 | (size);                                                                  \
	}
#define DECLARE_MAP(name, map_type, key_type, value_type, size, flags)                                                 \
	DECLARE_SIZES(name, map_type, sizeof(key_type), sizeof(value_type), size, flags)
#define DECLARE_RING(name, size) DECLARE_SIZES(name, BPF_MAP_TYPE_RINGBUF, 0, 0, size, 0)
#define MAP(name) ((void *)bpf_pseudo_fd(1, name##_number))
/* As -Dhas_set_retval_value=1. */
#define CONSTANT(type, name, value) enum { name = name##_value }

#else

#include <stdbool.h>
#include <bpf/bpf_helpers.h>

/* What has loops: it is verified once for each program, and not for each way into it. Its arguments are numbers. */
#define SUBPROGRAM __attribute__((noinline))
#define DECLARE_MAP(name, map_type, key_type, value_type, size, flags)                                                 \
	struct {                                                                                                       \
		__uint(type, map_type);                                                                                \
		__uint(map_flags, flags);                                                                              \
		__uint(max_entries, size);                                                                             \
		__type(key, key_type);                                                                                 \
		__type(value, value_type);                                                                             \
	} name SEC(".maps")
#define DECLARE_RING(name, size)                                                                                       \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_RINGBUF);                                                                    \
		__uint(max_entries, size);                                                                             \
	} name SEC(".maps")
#define MAP(name) (&name)
#define DECLARE_LICENSE(name) char _license[] SEC("license") = name
/* Set before the programs are loaded. A constant and no map: the verifier leaves out what a false one guards, so that a
 * helper this kernel does not have may be named. */
#define CONSTANT(type, name, value) const volatile type name = value

#endif
#endif

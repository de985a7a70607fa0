"""The encrypted underlay: one WireGuard device per node, in the kernel or in a process of its own."""

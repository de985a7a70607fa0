"""Kernel tables as `clustermesh.reconcile.Target`s: eBPF maps, WireGuard peers, routes."""

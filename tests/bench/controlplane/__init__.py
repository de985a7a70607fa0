"""Figures of the API server and of the mirror, each beside what it must reach: `make bench-controlplane`.

In the frame of tests/bench/frame.py, as tests/bench/middle. The Kubernetes API and every etcd are real, their data is
on tmpfs, and what is measured runs in a process of its own.
"""

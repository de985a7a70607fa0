"""Real Kubernetes clusters on one machine: the end-to-end test bed, and `clustermesh demo --kubernetes`.

    this machine   cmk8s, a bridge, 10.210.0.0/24
                   10.210.0.1 ═══ kube-apiserver, controller manager, scheduler and etcd of alpha
                   10.210.0.2 ═══ the same of beta
        ┌──────────────┴───────────────┐
    alpha-1  10.210.0.11           beta-1  10.210.0.21
    kubelet, containerd, runc      kubelet, containerd, runc
    pods 10.1.0.0/24               pods 10.2.0.0/24

A node is its own network, mount, pid, uts, ipc and cgroup namespaces over this machine's files (`node_init.sh`). No
registry, no kube-proxy, and no network of pods but ours. `ground` is what stands under them, and finds what an ended
run left; `control_plane` and `node` are the parts, `cluster` puts them together, `workloads` runs pods on them.
"""

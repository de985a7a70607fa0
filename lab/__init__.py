"""A whole mesh on one machine, made of the production processes: the demo, the end-to-end test bed, the bench bed.

                         internet (own network namespace, one bridge br0, 172.20.0.0/16)
        ┌──────────────┬──────────┴───┬──────────────┬──────────────┬──────────────┐
    alpha-control   alpha-1        alpha-2      beta-control      beta-1        beta-2
    172.20.1.1      172.20.1.11    172.20.1.12  172.20.2.1        172.20.2.11   172.20.2.12
    etcd            agent          agent        etcd              agent         agent
    apiserver       kubelet        kubelet      apiserver         kubelet       kubelet
                    10.1.1.0/24    10.1.2.0/24                    10.2.1.0/24   10.2.2.0/24

`plan` says what is where (pure), `manifests` writes it as Kubernetes YAML (pure), `node_init` is the first process of a
node, `kubelet` runs a node's Pods, `bring_up` makes it all and `teardown` unmakes it, `promises` is what must hold.
Read in that order.
"""

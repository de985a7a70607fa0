#!/bin/sh
# One node of a cluster by the programs on PATH, in namespaces of its own: etcd, API server, agent. CHECKOUT is empty there, and
# ROOT is the root. Prints what the agent says of itself; keeps logs in FOLDER (of ROOT).   bare_machine.sh ROOT CHECKOUT FOLDER PATH
set -eu
root=$1 checkout=$2 folder=$3
case "${5:-}" in
  "")
    group=/sys/fs/cgroup/unified
    [ -d "$group" ] || group=/sys/fs/cgroup
    group="$group/clustermesh-bare-$$"
    mkdir "$group"
    trap 'rmdir "$group"' EXIT
    (
      sh -c 'echo $PPID' >"$group/cgroup.procs"
      exec unshare --mount --net --pid --uts --ipc --cgroup --fork --kill-child --mount-proc sh "$0" "$1" "$2" "$3" "$4" apart
    )
    exit
    ;;
  apart)
    if [ "$root" != / ]; then
      mount --rbind /dev "$root/dev"
      mount -t proc proc "$root/proc"
      : >"$root/etc/resolv.conf" # a container runtime makes one
      cp "$0" "$root/bare_machine.sh"
      exec chroot "$root" /bin/sh /bare_machine.sh / "$2" "$3" "$4" inside
    fi
    mount -t tmpfs tmpfs "$checkout"
    umount -R /sys
    mount -t tmpfs tmpfs /run
    ;;
esac
export PATH="$4"
cd /
mkdir -p "$folder/state"
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
ip link set lo up
ip link add eth0 type veth peer name wire
ip address add 192.0.2.1/24 dev eth0
ip link set eth0 up
ip link set wire up

clustermesh init "$folder/alpha" --name alpha --id 1 --endpoint https://192.0.2.1:2379 >/dev/null
mkdir -p "$folder/alpha/manifests"
cat >"$folder/alpha/manifests/node.yaml" <<Y
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDR: 10.1.0.0/24}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
Y
clustermesh etcd --context "$folder/alpha" >"$folder/etcd.log" 2>&1 &
clustermesh apiserver --context "$folder/alpha" >"$folder/apiserver.log" 2>&1 &
clustermesh-agent --context "$folder/alpha" --node n1 --state-dir "$folder/state" >"$folder/agent.log" 2>&1 &
clustermesh status --context "$folder/alpha" --wait --wait-duration 30 >"$folder/status.log" 2>&1 || { cat "$folder"/*.log; exit 1; }
tries=0
until clustermesh node status -o json >"$folder/node.json" || [ $((tries += 1)) = 50 ]; do sleep 0.2; done
cat "$folder/node.json"

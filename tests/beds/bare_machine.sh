#!/bin/sh
# One node of a cluster by the programs on PATH, in namespaces of its own in which CHECKOUT is empty: etcd, API server, agent.
# Prints what the agent and the API server say of themselves.   bare_machine.sh CHECKOUT FOLDER PATH
set -eu
if [ "${4:-}" != inside ]; then
  group=/sys/fs/cgroup/unified
  [ -d "$group" ] || group=/sys/fs/cgroup
  group="$group/clustermesh-bare-$$"
  mkdir "$group"
  trap 'rmdir "$group"' EXIT
  (
    sh -c 'echo $PPID' >"$group/cgroup.procs"
    exec unshare --mount --net --pid --uts --ipc --cgroup --fork --kill-child --mount-proc sh "$0" "$1" "$2" "$3" inside
  )
  exit
fi
checkout=$1 folder=$2
export PATH="$3"
cd /
mount -t tmpfs tmpfs "$checkout"
umount -R /sys
mount -t sysfs sysfs /sys
mkdir -p /run/cgroup "$folder/state"
mount -t tmpfs tmpfs /run
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
clustermesh node status -o json

#!/bin/sh
# The first process of a node (node.py): in network, mount, pid, uts, ipc and cgroup namespaces of its own over this
# machine's files, it makes what a node has to itself, and runs containerd and then the kubelet. All ends with it.
#   node_init.sh FOLDER KUBE KUBECONFIG NAME ADDRESS CONTAINERD      the last: a state folder of containerd that has the images
set -eu
folder=$1 kube=$2 kubeconfig=$3 name=$4 address=$5 images=$6
hostname "$name"
mount --make-rprivate /
mount -t proc proc /proc

# A fresh /sys would leave the machine's cgroups in /proc/mounts, below it.
umount -R /sys
mount -t sysfs sysfs /sys
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
for each in cpu cpuacct cpuset memory devices freezer blkio pids; do
  mkdir "/sys/fs/cgroup/$each"
  mount -t cgroup -o "$each" cgroup "/sys/fs/cgroup/$each"
done
mkdir /sys/fs/cgroup/systemd /sys/fs/cgroup/unified
mount -t cgroup -o name=systemd cgroup /sys/fs/cgroup/systemd
mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified

# Settings of the whole kernel that the kubelet writes: it finds them as it likes them, and the machine's stay.
mkdir "$folder/sysctl"
while read -r key value; do
  file="$folder/sysctl/$(echo "$key" | tr / .)"
  echo "$value" >"$file"
  mount --bind "$file" "/proc/sys/$key"
done <<EOF
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
EOF

layer() {  # WHERE: what is made there is the node's alone, over what the machine has
  mkdir -p "$folder/layer$1" "$folder/work$1"
  mount -t overlay -o "lowerdir=$1,upperdir=$folder/layer$1,workdir=$folder/work$1" layer "$1"
}
own() {  # WHERE: a folder that the node has to itself, and that the machine need not have, nor gets
  parent=$1
  until [ -d "$parent" ]; do parent=$(dirname "$parent"); done
  [ "$parent" = "$1" ] || [ -d "$folder/layer$parent" ] || layer "$parent"
  mkdir -p "$1" "$folder/own$1"
  mount --bind "$folder/own$1" "$1"
}
for each in /run /var/lib/kubelet /var/lib/containerd /var/lib/cni /var/lib/clustermesh /var/log /etc/cni/net.d /opt/cni/bin; do
  own "$each"
done
mkdir -p /run/lock /run/netns /run/containerd /var/log/pods /var/log/containers
cp -al "$images/." /var/lib/containerd 2>/dev/null || cp -a "$images/." /var/lib/containerd  # on another disk no links can be made
find "$images" -name '*.db' -printf '%P\n' | while read -r each; do cp --remove-destination "$images/$each" "/var/lib/containerd/$each"; done
cp /usr/lib/cni/loopback /opt/cni/bin  # containerd 1 wants it with any network
mount --make-rshared /
echo 1 >/proc/sys/net/ipv4/ip_forward

cd "$folder"
containerd --config "$folder/containerd.toml" >containerd.log 2>&1 &
until [ -S /run/containerd/containerd.sock ] && [ -e go ]; do sleep 0.05; done  # with no API server the kubelet backs off for long
"$kube" kubelet --config "$folder/kubelet.yaml" --kubeconfig "$kubeconfig" --hostname-override "$name" \
  --node-ip "$address" --root-dir /var/lib/kubelet --cert-dir "$folder/certs" >kubelet.log 2>&1 &
wait

#!/usr/bin/env python3
"""A CNI plugin for the kubelet's tests: a veth pair and a route, no agent. It notes each call in CALLS below.

Installed by the tests as an executable named `cni-for-tests`; its network configuration may hold "fail": the number of
ADD calls to refuse first.
"""

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

CALLS = Path("/run/cni-calls")


def main() -> int:
    verb, pod = os.environ["CNI_COMMAND"], os.environ["CNI_ARGS"].rpartition("=")[2]
    netconf = json.load(sys.stdin)
    CALLS.mkdir(exist_ok=True)
    with (CALLS / pod).open("a") as calls:
        print(verb, "with result" if "prevResult" in netconf else "", file=calls)
    adds = [line for line in (CALLS / pod).read_text().splitlines() if line.startswith("ADD")]
    if verb == "ADD" and len(adds) <= netconf.get("fail", 0):
        print(json.dumps({"cniVersion": "1.0.0", "code": 11, "msg": "the agent is not there yet"}))
        return 1
    if verb == "ADD":
        number = 10 + zlib.crc32(pod.encode()) % 240
        attach(os.environ["CNI_NETNS"], f"veth-{pod}", f"10.9.0.{number}")
        print(json.dumps({"cniVersion": "1.0.0", "ips": [{"address": f"10.9.0.{number}/32"}]}))
    if verb == "DEL":
        subprocess.run(["ip", "link", "delete", f"veth-{pod}"], stderr=subprocess.DEVNULL, check=False)
    return 0


def attach(netns: str, link: str, address: str) -> None:
    inside = ["nsenter", f"--net={netns}", "ip"]
    for command in (
        ["ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", netns],
        ["ip", "address", "add", "10.9.0.1/32", "dev", link],
        ["ip", "link", "set", link, "up"],
        ["sh", "-c", f"echo 1 > /proc/sys/net/ipv4/conf/{link}/proxy_arp"],
        ["ip", "route", "add", f"{address}/32", "dev", link],
        [*inside, "address", "add", f"{address}/32", "dev", "eth0"],
        [*inside, "link", "set", "eth0", "up"],
        [*inside, "route", "add", "default", "dev", "eth0"],
    ):
        subprocess.run(command, check=True)


if __name__ == "__main__":
    sys.exit(main())

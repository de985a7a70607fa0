"""What the loader decides without a kernel: where the programs are, how pins are named, what mounts mean."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.bpf import bpffs, libbpf, loader, pins
from agent.bpf.bpffs import Mount
from agent.bpf.libbpf import MapShape
from agent.bpf.links import pin_name
from agent.bpf.sizes import LEAST, MOST, by_memory, by_option
from agent.bpf.syscalls import MapType
from clustermesh.errors import Refused

MOUNTS = rb"""sysfs /sys sysfs rw 0 0
tmpfs /sys/fs/cgroup tmpfs rw 0 0
cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0
bpf /sys/fs/bpf bpf rw 0 0
tmpfs /covered tmpfs rw 0 0
bpf /covered bpf rw 0 0
bpf /hidden bpf rw 0 0
tmpfs /hidden tmpfs rw 0 0
bpf /with\040blank bpf rw 0 0
/dev/sda / ext4 rw 0 0
"""


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "mounts"
    path.write_bytes(MOUNTS)
    monkeypatch.setattr(bpffs, "_MOUNTS", path)
    return path


def test_cgroup2_is_found_wherever_it_is_mounted(mounts: Path) -> None:
    assert bpffs.cgroup2_root() == Path("/sys/fs/cgroup/unified")
    assert Mount(Path("/with blank"), "bpf") in bpffs.mounts()
    mounts.write_bytes(MOUNTS.replace(b"cgroup2", b"cgroup3"))
    assert bpffs.cgroup2_root() is None


def test_the_object_named_by_the_environment_is_used_or_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = tmp_path / "programs.o"
    monkeypatch.setenv(loader.OBJECT_VARIABLE, str(named))
    with pytest.raises(Refused, match=rf"{named}.*make -C bpf"):
        loader.find_object()
    named.write_bytes(b"")
    assert loader.find_object() == named


def test_pins_have_names_without_dots_and_no_two_alike() -> None:
    names = [pin_name("strict_ingress", device) for device in ("eth0", "eth0.100", "eth0%2e100", "eth0%100")]
    assert len(set(names)) == len(names)
    assert not any("." in name for name in names)
    assert names[0] == "strict_ingress_eth0"


def test_maps_may_differ_in_size_and_in_nothing_else() -> None:
    shape = MapShape(type=1, key_size=4, value_size=12, max_entries=100, flags=1)
    pins.check_fits(Path("/pins/ipcache"), shape, shape._replace(max_entries=7))
    for other in ({"type": 2}, {"key_size": 8}, {"value_size": 16}, {"flags": 0}):
        with pytest.raises(Refused, match="/pins/ipcache"):
            pins.check_fits(Path("/pins/ipcache"), shape, shape._replace(**other))


def test_a_per_cpu_value_is_padded_once_per_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pins, "possible_cpus", lambda: 3)
    assert [pins.per_cpu_size(size) for size in (1, 8, 12)] == [24, 24, 48]


def test_a_missing_libbpf_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise OSError("libbpf.so.1: cannot open shared object file")

    monkeypatch.setattr(libbpf, "_loaded", [])
    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(Refused, match="Install libbpf"):
        libbpf.version()


def test_sizes_as_they_usually_are_change_no_map() -> None:
    assert by_option() == {}


def test_more_frontends_have_more_of_all_that_is_behind_them() -> None:
    assert by_option(lb=100_000, reverse=2048) == {
        **dict.fromkeys(("lb_services", "lb_maglev", "lb_source_ranges"), 100_000),
        **dict.fromkeys(("lb_groups", "lb_slots", "lb_backends"), 200_000),
        "lb_reverse_sk": 2048,
    }


_LRU = {
    "affinity": MapShape(MapType.LRU_HASH, 24, 16, 65536, 0),  # 104 bytes an entry
    "ct": MapShape(MapType.LRU_HASH, 40, 87, 262144, 0),  # 192
}
_ALL = _LRU | {"ipcache": MapShape(MapType.HASH, 16, 24, 512000, 1)}


@pytest.mark.parametrize("memory", [1, 1 << 20, 57_147_392, 1 << 30, 1 << 60])
def test_maps_of_programs_share_the_memory_they_may_have(memory: int) -> None:
    sizes = by_memory(_ALL, memory)
    assert sizes.keys() == _LRU.keys()
    assert all(LEAST <= size <= MOST for size in sizes.values())
    if memory == 57_147_392:  # what they usually have
        assert sizes == {"affinity": 65536, "ct": 262144}
    if sizes["affinity"] > LEAST and sizes["ct"] < MOST:
        used = sizes["affinity"] * 104 + sizes["ct"] * 192
        assert memory - 300 < used <= memory
        assert abs(sizes["ct"] / sizes["affinity"] - 4) < 0.01


@given(st.integers(1, 1 << 40))
def test_more_memory_makes_no_map_smaller(memory: int) -> None:
    less, more = by_memory(_ALL, memory), by_memory(_ALL, memory * 2)
    assert all(more[name] >= size for name, size in less.items())

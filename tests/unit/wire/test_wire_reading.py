"""Liberal in what is read: absent and null fields, old and new releases, other spellings."""

from __future__ import annotations

import json

import pytest
from wire_values import CART, CONFIG, LABELS, N1, POD

from clustermesh.address import parse, parse_prefix
from clustermesh.errors import DecodeError, Invalid
from clustermesh.model import Identity, Label, LocalService, NamedPort, Node, Port, Protocol, Service, Zone
from clustermesh.wire import cluster_config, endpoint, identity, local, node, service, service_export
from clustermesh.wire.timestamp import parse_time

HTTP = Port(protocol=Protocol.TCP, port=8080)
MINIMAL = b'{"cluster":"west","namespace":"shop","name":"cart","clusterID":2,"shared":true,"backends":%s}'


def test_smallest_service_cilium_accepts() -> None:
    assert service.decode(MINIMAL % b'{"10.20.1.8":{"http":{"Protocol":"TCP","Port":8080}}}') == Service(
        cluster="west",
        cluster_id=2,
        namespace="shop",
        name="cart",
        backends={parse("10.20.1.8"): {"http": HTTP}},
        include_external=False,
    )


def test_null_maps_are_empty() -> None:
    read = service.decode(
        b'{"cluster":"west","namespace":"shop","name":"cart","frontends":null,"backends":{"10.0.0.1":null},'
        b'"hostnames":null,"zones":null,"labels":null,"selector":null,"clusterID":2}'
    )
    assert (read.frontends, read.hostnames, read.zones, read.labels, read.selector) == ({}, {}, {}, {}, {})
    assert read.backends == {parse("10.0.0.1"): {}}
    assert not read.shared


def test_zones_of_newer_releases() -> None:
    zones = (
        b'{},"zones":{"10.0.0.1":{"zone":"z1","forZones":[{"name":"z1"},{"name":"z2"}]},"fd00::1":{"forZones":null}}'
    )
    assert service.decode(MINIMAL % zones).zones == {
        parse("10.0.0.1"): Zone(zone="z1", for_zones=("z1", "z2")),
        parse("fd00::1"): Zone(),
    }


@pytest.mark.parametrize("spelling", ["TCP", "tcp", "Tcp"])
def test_protocol_in_any_case(spelling: str) -> None:
    value = MINIMAL % b'{"10.0.0.1":{"http":{"Protocol":"%s","Port":8080}}}' % spelling.encode()
    assert service.decode(value).backends[parse("10.0.0.1")]["http"] == HTTP


@pytest.mark.parametrize(
    "port",
    [
        b"null",
        b"{}",
        b'{"Protocol":"TCP"}',
        b'{"Port":80}',
        b'{"Protocol":"","Port":80}',
        b'{"Protocol":"ICMP","Port":80}',
        b'{"Protocol":"TCP","Port":65536}',
        b'{"Protocol":"TCP","Port":-1}',
        b'{"Protocol":"TCP","Port":"80"}',
        b'{"Protocol":null,"Port":80}',
    ],
)
def test_port_that_is_none_refuses_the_service(port: bytes) -> None:
    with pytest.raises(DecodeError):
        service.decode(MINIMAL % (b'{"10.0.0.1":{"http":%s}}' % port))


@pytest.mark.parametrize(
    "ip", ["", "x", "10.0.0", "10.0.0.01", "10.0.0.1/24", "fe80::1%eth0", "::ffff:10.0.0.1", "[::1]", "1.2.3.4\\n"]
)
@pytest.mark.parametrize("table", ["frontends", "backends", "hostnames", "zones"])
def test_address_that_is_none_refuses_the_service(table: str, ip: str) -> None:
    inner = {"hostnames": '"x"', "zones": "{}"}.get(table, "{}")
    value = f'{{"cluster":"west","namespace":"shop","name":"cart","clusterID":2,"{table}":{{"{ip}":{inner}}}}}'
    with pytest.raises(DecodeError, match="address"):
        service.decode(value.encode())


def test_address_is_read_in_any_spelling_and_kept_canonical() -> None:
    assert list(service.decode(MINIMAL % b'{"FD00:0:0::8":{}}').backends) == [parse("fd00::8")]


def test_address_in_two_spellings_refuses_the_service() -> None:
    with pytest.raises(DecodeError, match="twice"):
        service.decode(MINIMAL % b'{"FD00:0:0::8":{},"fd00::8":{}}')


@pytest.mark.parametrize("table", ["frontends", "backends", "hostnames", "zones"])
def test_a_service_of_too_many_addresses_is_refused_before_any_of_them_is_read(table: str) -> None:
    inner = {"hostnames": '"x"', "zones": "{}"}.get(table, "{}")
    two = f'{{"cluster":"west","namespace":"shop","name":"cart","clusterID":2,"{table}":{{"x":{inner},"y":{inner}}}}}'
    with pytest.raises(DecodeError, match=r"2 addresses.*at most 1"):
        service.decode(two.encode(), 1)
    with pytest.raises(DecodeError, match="must be an IPv4 or IPv6 address"):
        service.decode(two.encode(), 2)


def test_ports_that_are_spelled_in_two_ways_are_the_same() -> None:
    ports = [b'{"http":{"Protocol":"TCP","Port":8080}}', b'{ "http": {"Port":8080, "Protocol":"tcp"} }', b"null", b"{}"]
    value = MINIMAL % b"{%s}" % b",".join(b'"10.0.0.%d":%s' % each for each in enumerate(ports))
    assert list(service.decode(value).backends.values()) == [{"http": HTTP}, {"http": HTTP}, {}, {}]


@pytest.mark.parametrize("missing", ["cluster", "namespace", "name", "clusterID"])
def test_service_without_a_name_or_owner_is_refused(missing: str) -> None:
    key = f'"{missing}":'.encode()
    absent = CART.replace(key, b'"no' + key[1:])
    assert absent != CART
    with pytest.raises(DecodeError):
        service.decode(absent)


def test_unknown_fields_are_ignored() -> None:
    assert service.decode(CART[:-1] + b',"new":{"a":[1,2.5,null,"x"]}}') == service.decode(CART)
    assert node.decode(N1[:-1] + b',"HostAliases":{}}') == node.decode(N1)
    assert endpoint.decode(POD[:-1] + b',"K8sPodUID":"6c0f"}') == endpoint.decode(POD)
    assert cluster_config.decode(CONFIG[:-1] + b',"x":1}') == cluster_config.decode(CONFIG)


def test_smallest_node() -> None:
    assert node.decode(b'{"Name":"w1","Cluster":"west","ClusterID":2}') == Node(
        name="w1", cluster="west", cluster_id=2, source=""
    )


def test_node_addresses_without_ip_are_left_out() -> None:
    value = (
        b'{"Name":"w1","Cluster":"west","ClusterID":2,"IPAddresses":['
        b'{"Type":"Hostname","IP":""},{"Type":"InternalIP","IP":null},{"Type":"InternalIP","IP":"192.0.2.1"}]}'
    )
    assert [address.ip for address in node.decode(value).addresses] == [parse("192.0.2.1")]


def test_node_with_null_addresses_and_cidrs() -> None:
    value = (
        b'{"Name":"w1","Cluster":"west","ClusterID":2,"IPAddresses":null,"IPv4AllocCIDR":null,"IPv4HealthIP":null,'
        b'"IPv4SecondaryAllocCIDRs":[null,{"IP":"10.0.0.0","Mask":"/wAAAA=="}],"Labels":null}'
    )
    read = node.decode(value)
    assert (read.addresses, read.health_ips, read.labels) == ((), (), None)
    assert read.pod_cidrs == (parse_prefix("10.0.0.0/8"),)


@pytest.mark.parametrize(
    "cidr",
    [
        '{"IP":"10.1.0.0","Mask":"/24"}',
        '{"IP":"10.1.0.0","Mask":"////"}',  # three bytes
        '{"IP":"10.1.0.0","Mask":"//8A/w=="}',  # ones after zeros
        '{"IP":"10.1.0.0","Mask":"//////////8AAAAAAAAAAA=="}',  # of the other family
        '{"IP":"fd00::","Mask":"//////////8AAAAAAAAAAA=="}',
        '{"IP":"10.1.0.7","Mask":"////AA=="}',  # host bits
        '{"IP":"","Mask":"////AA=="}',
        '{"IP":"10.1.0.0","Mask":null}',
        '"10.1.0.0/24"',
    ],
)
def test_pod_cidr_that_is_none_refuses_the_node(cidr: str) -> None:
    with pytest.raises(DecodeError):
        node.decode(N1.replace(b'{"IP":"10.1.0.0","Mask":"////AA=="}', cidr.encode()))


@pytest.mark.parametrize(
    "key", [b"x", b"AAAA", b"aGVsbG9oZWxsb2hlbGxvaGVsbG9oZWxsb2hlbGxvMTI", b"A" * 88, b"A" * 42 + b"B="]
)
def test_wireguard_key_that_is_none_refuses_the_node(key: bytes) -> None:
    value = b'{"Name":"w1","Cluster":"west","ClusterID":2,"WireguardPubKey":"%s"}'
    assert node.decode(value % b"").wireguard_public_key == ""
    with pytest.raises(DecodeError, match="WireGuard key"):
        node.decode(value % key)


def test_endpoint_without_mask_and_with_the_fields_of_newer_releases() -> None:
    value = (
        b'{"IP":"10.20.1.8","HostIP":"192.0.2.11","ID":131500,"K8sNamespace":"shop","K8sPodName":"cart-0",'
        b'"K8sServiceAccount":"default","NamedPorts":[{"Name":"http","Port":8080,"Protocol":"tcp"}]}'
    )
    read = endpoint.decode(value)
    assert (read.prefix_length, read.key, read.service_account) == (None, 0, "default")
    assert read.named_ports == (NamedPort(name="http", port=8080, protocol=Protocol.TCP),)


@pytest.mark.parametrize("ip", [b'""', b"null", b'"x"', b'"fe80::1%eth0"', b'"::ffff:10.1.0.5"'])
def test_endpoint_without_an_address_is_refused(ip: bytes) -> None:
    with pytest.raises(DecodeError):
        endpoint.decode(POD.replace(b'"10.1.0.5"', ip))


def test_identity_labels_in_any_order() -> None:
    labels = LABELS.decode().split(";")[:-1]
    assert identity.decode(";".join(reversed(labels)).encode(), 65999) == identity.decode(LABELS, 65999)


def test_identity_labels_are_split_at_the_first_marks() -> None:
    assert identity.decode(b"k8s:a=b=c:d;k8s:x:y=;any:flag;plain=1", 1) == Identity(
        id=1,
        labels=(
            Label(source="k8s", key="a", value="b=c:d"),
            Label(source="any", key="flag"),
            Label(source="unspec", key="plain", value="1"),
            Label(source="k8s", key="x:y"),
        ),
    )


@pytest.mark.parametrize("text", [b"", b";", b";;", b"k8s:=x;", b":a=b;", b"a=b:c=d;k8s:;"])
def test_identity_without_a_label_that_is_one_is_refused(text: bytes) -> None:
    with pytest.raises(DecodeError):
        identity.decode(text, 1)


def test_absent_capability_differs_from_false() -> None:
    assert cluster_config.decode(b'{"id":3,"capabilities":{}}').service_exports_enabled is None
    assert (
        cluster_config.decode(b'{"id":3,"capabilities":{"serviceExportsEnabled":false}}').service_exports_enabled
        is False
    )
    assert cluster_config.decode(b'{"id":3,"capabilities":null}') == cluster_config.decode(b'{"id":3}')


@pytest.mark.parametrize(
    "value",
    [
        b"{}",
        b'{"id":0,"capabilities":{}}',
        b'{"id":512}',
        b'{"id":256,"capabilities":{"maxConnectedClusters":255}}',
        b'{"id":1,"capabilities":{"maxConnectedClusters":300}}',
        b'{"id":"1"}',
        b'{"id":4294967297}',
    ],
)
def test_config_of_a_cluster_that_cannot_be_is_refused(value: bytes) -> None:
    with pytest.raises(DecodeError):
        cluster_config.decode(value)


EXPORT = (
    b'{"cluster":"west","name":"cart","namespace":"shop",%s"exportCreationTimestamp":"2026-01-01T00:00:00Z",'
    b'"ports":[{"name":"http","protocol":"TCP","port":80}],"type":"ClusterSetIP","sessionAffinity":"None"}'
)


@pytest.mark.parametrize("names", [(b"annotations", b"labels"), (b"Annotations", b"Labels")])
def test_export_maps_in_either_spelling(names: tuple[bytes, bytes]) -> None:
    read = service_export.decode(EXPORT % (b'"%s":{"a":"b"},"%s":{"tier":"x"},' % names))
    assert (read.annotations, read.labels) == ({"a": "b"}, {"tier": "x"})


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (b'"type":"ClusterSetIP"', b'"type":"NodePort"'),
        (b'"type":"ClusterSetIP"', b'"type":""'),
        (b'"sessionAffinity":"None"', b'"sessionAffinity":"Cookie"'),
        (b"2026-01-01T00:00:00Z", b"0001-01-01T00:00:00Z"),
        (b"2026-01-01T00:00:00Z", b"yesterday"),
        (b'"exportCreationTimestamp":"2026-01-01T00:00:00Z",', b""),
        (b'"port":80', b'"port":65536'),
        (b'"name":"cart"', b'"name":""'),
        (b'"type":', b'"internalTrafficPolicy":"Nearby","type":'),
        (b'"type":', b'"trafficDistribution":"Spread","type":'),
    ],
)
def test_export_that_ciliums_validator_refuses_is_refused(good: bytes, bad: bytes) -> None:
    value = EXPORT % b""
    assert service_export.decode(value)
    assert good in value
    with pytest.raises(DecodeError):
        service_export.decode(value.replace(good, bad))


def test_export_with_an_empty_affinity_has_none() -> None:
    value = (EXPORT % b"").replace(b'"sessionAffinity":"None"', b'"sessionAffinity":""')
    assert service_export.decode(value).session_affinity == "None"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2026-11-21T00:21:31Z", 1795220491),
        ("2026-11-21T00:21:31.999999999Z", 1795220491),
        ("2026-11-21T01:21:31+01:00", 1795220491),
        ("2026-11-20T14:51:31-09:30", 1795220491),
        ("0001-01-01T00:00:00+23:59", -62135596800 - 86340),
    ],
)
def test_time_with_fractions_and_offsets(text: str, seconds: int) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-11-21",
        "2026-11-21 00:21:31Z",
        "2026-11-21T00:21:31",
        "2026-13-21T00:21:31Z",
        "2026-11-21T24:00:00Z",
        "2026-11-21T00:21:31+24:00",
        "2026-11-21T00:21:31+01:60",
        "2026-11-21T00:21:31Z\n",
        "٢026-11-21T00:21:31Z",
        "0000-01-01T00:00:00Z",
    ],
)
def test_time_that_is_none_is_invalid(text: str) -> None:
    with pytest.raises(Invalid):
        parse_time(text)


def test_local_service_of_an_unknown_affinity_is_refused() -> None:
    value = b'{"service":{"cluster":"a","namespace":"b","name":"c","clusterID":1},"affinity":"%s"}'
    assert not local.decode_service(value % b"remote").is_global
    with pytest.raises(DecodeError):
        local.decode_service(value % b"nearby")


@pytest.mark.parametrize(
    "more",
    [
        '"type":"ExternalName"',
        '"localOnly":1',
        '"affinitySeconds":-1',
        '"affinitySeconds":86401',
        '"algorithm":"fastest"',
        '"details":{"10.0.0.1":{"state":"gone"}}',
        '"details":{"10.0.0.1":{"weight":0}}',
        '"details":{"10.0.0.1":{"weight":65536}}',
        '"details":{"10.0.0.1":{"forZones":"a"}}',
        '"details":{"web":{}}',
        '"draining":{"10.0.0.256":{}}',
        '"draining":{"10.0.0.1":{"":{"Protocol":"TCP","Port":65536}}}',
        '"outside":{"nodePorts":{"":{"Protocol":"TCP","Port":0}}}',
        '"outside":{"nodePorts":{"":{"Protocol":"ICMP","Port":30000}}}',
        '"outside":{"externalIPs":["::ffff:10.0.0.1"]}',
        '"outside":{"loadBalancerIPs":[""]}',
        '"outside":{"sourceRanges":["10.0.0.1/8"]}',
        '"outside":{"sourceRanges":null}',
        '"outside":{"healthCheckPort":70000}',
        '"hostPorts":{"ports":{}}',
        '"hostPorts":{"node":"","ports":{}}',
        '"hostPorts":{"node":"n1","ports":{"":{"Protocol":"TCP","Port":0}}}',
        '"hostPorts":{"node":"n1","ports":{},"addresses":{"":"here"}}',
    ],
)
def test_a_local_service_with_a_value_that_is_none_is_refused(more: str) -> None:
    start = '{"service":{"cluster":"a","namespace":"b","name":"c","clusterID":1}'
    assert local.decode_service(f'{start},"unknown":{{{more}}}}}'.encode()) == local.decode_service(
        f"{start}}}".encode()
    )
    with pytest.raises(DecodeError):
        local.decode_service(f"{start},{more}}}".encode())


def test_a_local_service_of_which_there_is_nothing_more_to_say_is_spelled_as_ever() -> None:
    service = Service(cluster="a", cluster_id=1, namespace="b", name="c")
    assert [*json.loads(local.encode_service(LocalService(service=service)))] == ["service", "global", "affinity"]


def test_agent_record_needs_a_key() -> None:
    with pytest.raises(DecodeError, match="WireGuard key"):
        local.decode_agent(b'{"node":"n1","wireguardPublicKey":""}')
    with pytest.raises(DecodeError):
        local.decode_agent(b'{"wireguardPublicKey":"aGVsbG9oZWxsb2hlbGxvaGVsbG9oZWxsb2hlbGxvMTI="}')

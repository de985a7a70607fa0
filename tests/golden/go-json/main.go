// Prints what Go's encoding/json makes of awkward values, one per line: kind, a tab, the JSON. The structs below have the
// fields of the wire format in their order. Run it with `go run main.go > ../go-json.tsv`; the tests only read that file.
package main

import (
	"encoding/json"
	"fmt"
	"net"
)

type port struct {
	Protocol string
	Port     uint16
}

type forZone struct {
	Name string `json:"name"`
}

type zone struct {
	Zone     string    `json:"zone"`
	ForZones []forZone `json:"forZones"`
}

type service struct {
	Cluster         string                     `json:"cluster"`
	Namespace       string                     `json:"namespace"`
	Name            string                     `json:"name"`
	Frontends       map[string]map[string]port `json:"frontends"`
	Backends        map[string]map[string]port `json:"backends"`
	Hostnames       map[string]string          `json:"hostnames"`
	Zones           map[string]zone            `json:"zones,omitempty"`
	Labels          map[string]string          `json:"labels"`
	Selector        map[string]string          `json:"selector"`
	IncludeExternal bool                       `json:"includeExternal"`
	Shared          bool                       `json:"shared"`
	ClusterID       uint32                     `json:"clusterID"`
}

type address struct {
	Type string
	IP   net.IP
}

type cidr struct {
	IP   net.IP
	Mask net.IPMask
}

type node struct {
	Name                    string
	Cluster                 string
	IPAddresses             []address
	IPv4AllocCIDR           *cidr
	IPv4SecondaryAllocCIDRs []*cidr
	IPv6AllocCIDR           *cidr
	IPv6SecondaryAllocCIDRs []*cidr
	IPv4HealthIP            net.IP
	IPv6HealthIP            net.IP
	IPv4IngressIP           net.IP
	IPv6IngressIP           net.IP
	ClusterID               uint32
	Source                  string
	EncryptionKey           uint8
	Labels                  map[string]string
	Annotations             map[string]string
	NodeIdentity            uint32
	WireguardPubKey         string
	BootID                  string
}

type namedPort struct {
	Name     string
	Port     uint16
	Protocol string
}

type endpoint struct {
	IP                net.IP
	Mask              net.IPMask
	HostIP            net.IP
	ID                uint32
	Key               uint8
	Metadata          string
	K8sNamespace      string      `json:",omitempty"`
	K8sPodName        string      `json:",omitempty"`
	K8sServiceAccount string      `json:",omitempty"`
	NamedPorts        []namedPort `json:",omitempty"`
}

type capabilities struct {
	SyncedCanaries           bool   `json:"syncedCanaries,omitempty"`
	Cached                   bool   `json:"cached,omitempty"`
	MaxConnectedClusters     uint32 `json:"maxConnectedClusters,omitempty"`
	ServiceExportsEnabled    *bool  `json:"serviceExportsEnabled,omitempty"`
	EndpointSlicesExportMode string `json:"endpointSlicesExportMode,omitempty"`
}

type config struct {
	ID           uint32       `json:"id,omitempty"`
	Capabilities capabilities `json:"capabilities"`
}

var awkward = map[string]string{
	"":                       "empty key",
	"<b>&amp;</b>":           "</script>",
	"line\u2028paragraph":    "\u2029",
	"quote\"backslash\\":     "\\<\\\\>\\u003c",
	"control\x00\x01\x1f":    "\b\f\n\r\t\x7f\u0080",
	"é":                      "ü",
	"\uffff":                 "the last of the basic plane sorts before",
	"\U00010000":             "the first beyond it",
	"\U0001F578\uFE0F":       "a web",
	"a/b":                    "slash",
	"a":                      "short before long",
	"aa":                     "long",
	"B":                      "upper before lower",
	"service.cilium.io/Name": "x",
}

func network(text string) *cidr {
	_, n, err := net.ParseCIDR(text)
	if err != nil {
		panic(err)
	}
	return &cidr{n.IP, n.Mask}
}

func show(kind string, value any) {
	data, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	fmt.Printf("%s\t%s\n", kind, data)
}

func main() {
	no, yes := false, true
	ports := map[string]port{"": {"TCP", 0}, "z<": {"UDP", 65535}, "dns": {"SCTP", 53}, "any": {"ANY", 1}, "none": {"NONE", 2}}
	none := map[string]string{}
	show("service", service{"west", "shop", "cart", map[string]map[string]port{}, map[string]map[string]port{}, none, nil, none, none, false, false, 511})
	show("service", service{
		"west", "shop", "a<b>&c",
		map[string]map[string]port{"10.96.7.20": ports, "fd00::14": {}},
		map[string]map[string]port{"10.20.1.8": ports, "10.20.1.10": ports, "fd00:20::8": ports, "::": ports, "0.0.0.0": {}},
		map[string]string{"10.20.1.8": "cart-0", "10.20.1.10": "cart<1>"},
		map[string]zone{"10.20.1.8": {"z1", []forZone{{"z1"}, {"z&2"}}}, "10.20.1.10": {"", nil}},
		awkward, awkward, true, true, 1,
	})
	show("node", node{Name: "w1", Cluster: "west", ClusterID: 2, Source: "custom-resource"})
	show("node", node{
		"w<1>", "west",
		[]address{{"InternalIP", net.ParseIP("192.0.2.11")}, {"ExternalIP", net.ParseIP("2001:DB8:0:0:1:0:0:1")}},
		network("10.20.1.7/24"), []*cidr{network("10.21.0.0/15"), network("0.0.0.0/0")},
		network("fd00:1::/64"), []*cidr{network("::/0"), network("fd00::1/128")},
		net.ParseIP("10.20.1.9"), net.ParseIP("fd00:1::9"), net.ParseIP("10.20.1.10"), net.ParseIP("fd00:1:0:0:2::10"),
		511, "kvstore", 255, awkward, none, 4294967295, "aGVsbG9oZWxsb2hlbGxvaGVsbG9oZWxsb2hlbGxvMTI=", "<boot&id>",
	})
	show("endpoint", endpoint{IP: net.ParseIP("10.20.1.8"), ID: 131500})
	show("endpoint", endpoint{
		net.ParseIP("fd00:0:0:1::"), net.CIDRMask(64, 128), net.ParseIP("192.0.2.11"), 4294967295, 255, "<m&m>",
		"shop", "cart-0", "default", []namedPort{{"http", 8080, "TCP"}, {"", 0, "UDP"}},
	})
	show("endpoint", endpoint{IP: net.ParseIP("10.20.0.0").To4(), Mask: net.CIDRMask(16, 32), HostIP: net.ParseIP("fd00::1"), ID: 2})
	show("config", config{1, capabilities{}})
	show("config", config{255, capabilities{true, true, 255, &no, "services-and-endpointslices"}})
	show("config", config{511, capabilities{false, false, 511, &yes, ""}})
}

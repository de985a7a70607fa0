"""Services of all clusters in one cluster's Kubernetes API: ServiceImports of the MCS API (KEP-1645), and
EndpointSlices of backends elsewhere, for who reads neither etcd nor maps, as a DNS server."""

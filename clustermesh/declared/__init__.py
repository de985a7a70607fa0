"""Connected clusters that are declared: a ClusterMeshPeer each, kept in the Secrets that agents and mirrors read."""

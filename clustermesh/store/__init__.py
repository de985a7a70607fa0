"""etcd, as this project uses it: a client, a list-and-watch that survives everything, leases, users, a local server.

    async with EtcdClient(["https://10.0.0.1:2379"], Tls(ca, cert, key)) as client:
        await client.put(b"cilium/.heartbeat", now)
        async with aclosing(follow(client, b"cilium/state/nodes/v1/")) as items:
            async for item in items:
                ...  # Listed | Changed | Interrupted

The pure parts decide (`follower`, `operations.batches`, `endpoint`), the shells await (`client`, `watch`, `follow`,
`lease`, `auth`, `local`). Every foreign error is translated in `faults`.
"""

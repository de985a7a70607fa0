"""One archive with what support needs of a cluster: `gather` runs the sources and packs, `redact` takes out secrets."""

"""The one driver behind every claim of speed: ours and the peers in one process, JSON out, tables rendered from it."""

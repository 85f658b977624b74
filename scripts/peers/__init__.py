"""What bench_peers.py measures with: peers, checkpoints, ceilings, tables."""

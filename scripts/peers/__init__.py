"""What bench_peers.py measures with: peers, checkpoints, tables."""

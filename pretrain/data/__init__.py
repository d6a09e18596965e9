"""From shards to micro-batches: manifest.py and shards.py (format), order.py (which), source.py and stream.py (reading)."""

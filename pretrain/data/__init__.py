"""From shards to micro-batches: order.py decides which sequences, source.py and loader.py read them."""

"""Token shards on disk: format, manifest, writing, packing, verification."""

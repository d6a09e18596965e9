"""Verified blocks of a corpus, from a memory map, a memory cache, the node's disk cache or a store."""

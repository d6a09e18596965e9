"""Encoding a corpus into token shards, in tasks that any number of processes share."""

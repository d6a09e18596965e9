"""Rewrites WebDataset tars of tokens from other tools as token shards."""

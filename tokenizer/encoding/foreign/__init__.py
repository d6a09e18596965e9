"""Rewriting WebDataset tars of tokens that others wrote into our shards."""

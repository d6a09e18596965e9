"""Attention maps and weight statistics of a model."""

"""Architectures of transformers that can hold our models, and the conversion in both directions. Start with choose.py."""

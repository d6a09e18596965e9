"""Checkpoints over the engine: complete or absent, executing nothing on load, readable at any size. Start with layout.py."""

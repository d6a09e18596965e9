"""Conversion between checkpoints and formats of other libraries. Start with export_hf.py and docs/concepts/export.md."""

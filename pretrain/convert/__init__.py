"""Checkpoints → folders that other libraries load. Start with hf.py; docs/concepts/export.md says what is proved."""

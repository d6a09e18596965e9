"""Corpora of text: which files, split into which tasks, and what was left out."""

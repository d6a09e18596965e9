"""Processes of a run: ranks, collectives, and the DeepSpeed engine."""

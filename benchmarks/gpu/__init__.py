"""Checks and speed of one GPU: correctness before speed, in eight minutes at most."""

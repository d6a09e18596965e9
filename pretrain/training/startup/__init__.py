"""The start of a run: checks, claiming the run folder, the point to start from."""

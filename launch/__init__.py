"""Launching a run on this machine, over ssh or on SLURM; its status; stopping it."""

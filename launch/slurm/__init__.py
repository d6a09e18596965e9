"""SLURM: cluster files, batch scripts, submission."""

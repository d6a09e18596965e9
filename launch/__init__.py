"""Starting a run: on this machine, on several over ssh, on a SLURM cluster; its status, and its end."""

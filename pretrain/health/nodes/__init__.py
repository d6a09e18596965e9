"""Checks of a SLURM job's nodes before training: devices, disks, clocks, versions, network bandwidth."""

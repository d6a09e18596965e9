"""Arithmetic on a configuration, without torch: parameters, FLOPs, batch sizes, memory."""

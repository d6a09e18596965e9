"""Detection of hangs, stragglers, diverged replicas and stop requests."""

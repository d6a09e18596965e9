"""Starting a run: on one machine with torchrun."""

"""The `pretrain` command line: one file a command group."""

"""`pretrain quickstart`: the whole path on one machine."""

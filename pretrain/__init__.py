"""pretrain-toolkit: from a corpus and a cluster to a language model that others fine-tune."""

__version__ = "0.1.0"

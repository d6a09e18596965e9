"""Tokenizers: reading a corpus, training a SentencePiece model on it, and encoding it into shards for `pretrain.data`."""

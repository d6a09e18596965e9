"""From raw text to a SentencePiece model, and from both to token shards that `pretrain.data` reads."""

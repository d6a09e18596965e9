"""Training a SentencePiece model on a sample of a corpus; reports on and inspection of tokenizers."""

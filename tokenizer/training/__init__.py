"""Training a SentencePiece model on a sample of a corpus, and reports about a tokenizer."""

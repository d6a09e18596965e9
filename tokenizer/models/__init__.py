"""All knowledge of tokenizer files: SentencePiece models, tokenizer.json, conversion between them, fast encoding."""

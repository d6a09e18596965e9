"""Reading and writing the files of a Hugging Face directory: weights, config.json, tokenizer."""

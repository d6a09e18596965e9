"""Files of a Hugging Face directory: reading and writing weights, config and tokenizer."""

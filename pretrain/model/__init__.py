"""A decoder transformer, written from scratch. Start with decoder.py; each part has its own file, with its paper."""

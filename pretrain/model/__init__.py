"""A decoder transformer from scratch. Start with decoder.py; each part has its own file and its paper."""

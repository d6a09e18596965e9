"""The training loop and what it calls at each step."""

"""How good a model is: loss on held-out text, during training and after it, and tasks of lm-evaluation-harness."""

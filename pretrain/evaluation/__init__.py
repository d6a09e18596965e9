"""Evaluation: held-out loss, during and after training, and tasks of lm-evaluation-harness."""

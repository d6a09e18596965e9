"""Looking inside a model: where it attends, and what its weights are like."""

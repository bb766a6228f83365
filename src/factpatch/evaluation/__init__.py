"""What a model says of facts, and what its answers are worth: probabilities, answers, perplexity, metrics."""

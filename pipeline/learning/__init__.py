"""Networks and what carries a long run: determinism, checkpoints, the estimate that training starts from."""

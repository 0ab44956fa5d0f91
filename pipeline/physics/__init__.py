"""From frames to an object: forward model and adjoint, gauge, priors, losses, the solver. Knows tensors, no files."""

"""What methods share: gradients, incremental sweeps, and the loop that optimises images."""

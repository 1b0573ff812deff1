"""Gradients of targets for the input, computed with the least work that gives the same results."""

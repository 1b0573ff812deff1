"""The gradient of any target for the input, by the least work that gives the same numbers."""

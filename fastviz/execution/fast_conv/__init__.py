"""Faster ways to the same convolutions and normalisations: memory order, strides, Winograd's transforms."""

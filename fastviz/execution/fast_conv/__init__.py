"""The same convolutions and normalizations, sooner: memory order, strides, Winograd's transforms."""

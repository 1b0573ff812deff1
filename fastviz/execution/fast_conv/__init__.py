"""The same convolutions and normalisations, sooner: memory order, strides, Winograd's transforms."""

"""Tensors in, tensors out: projections, nearest neighbours, the strongest entries, places on a plane."""

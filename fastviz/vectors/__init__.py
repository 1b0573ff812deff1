"""Tensors in, tensors out: projections, nearest neighbours, the highest entries, layouts on a plane."""

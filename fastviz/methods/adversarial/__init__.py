"""Fooling images: small changes of a photograph, noise, and evolution."""

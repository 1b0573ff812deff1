"""Measures of maps against the tools that have them."""

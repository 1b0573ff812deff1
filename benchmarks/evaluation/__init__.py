"""Measures of maps, compared with other tools."""

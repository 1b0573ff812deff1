"""Masked images: values of the target for many images with parts removed."""

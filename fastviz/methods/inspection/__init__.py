"""Inspection of a network: filters, activations, patches, embeddings."""

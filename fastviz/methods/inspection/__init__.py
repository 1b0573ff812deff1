"""What a network holds and responds to: filters, activations, patches, embeddings."""

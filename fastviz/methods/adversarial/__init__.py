"""Images that fool a network: small changes of a photograph, noise, and evolution."""

"""Images that a network imagines: maximisation, inversion, DeepDream, textures, style."""

"""Image synthesis: activation maximisation, inversion, DeepDream, textures, style."""

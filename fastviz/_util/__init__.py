"""Small things that every folder needs: checks of arguments, progress, memory, files."""

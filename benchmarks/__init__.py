"""Speed, measured side by side; see README."""

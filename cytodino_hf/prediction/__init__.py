"""Use a finished model: one that answers in Python, and one command for thousands of images."""

"""Two runs on the same test images: is the difference real, in which classes, and which cells changed."""

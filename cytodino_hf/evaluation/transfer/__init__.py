"""A model on another source: which classes are common, and how well it tells them apart there."""

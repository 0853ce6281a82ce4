"""`cytodino probe`: what backbones are worth before they are fine-tuned, side by side on the very same folds."""

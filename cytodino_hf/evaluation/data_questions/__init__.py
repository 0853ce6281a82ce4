"""Questions about the images and not the model: copies in other folds, doubtful labels, rare classes, other stain."""

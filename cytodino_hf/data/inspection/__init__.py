"""A look at every image before training: what can be read, what is there twice, what stands out."""

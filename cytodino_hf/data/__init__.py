"""From a folder of images to a `datasets.Dataset` with folds, transforms and a sampler."""

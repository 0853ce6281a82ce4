"""The files that travel with every model: configuration, modelling code, image processor.

They import only torch, transformers and each other, so that `trust_remote_code=True` runs them where
`cytodino_hf` is not installed.
"""

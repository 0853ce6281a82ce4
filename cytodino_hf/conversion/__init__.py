"""Weights of others, brought into folders that transformers loads: `cytodino convert`."""

"""Cells unlike those the model learned from: scores, thresholds that travel with the model, and how well they tell."""

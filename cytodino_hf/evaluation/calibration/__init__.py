"""As sure as it is right: scaling of logits, fitted on the calibration fold, and how far a model is off."""

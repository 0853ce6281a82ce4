"""Learning from unlabelled cells before any label is used: iBOT, which ends in a backbone every recipe can name."""

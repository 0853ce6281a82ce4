"""What CytoTrainer is made of: exact steps, sealed checkpoints, guards, and what a machine can do to a run."""

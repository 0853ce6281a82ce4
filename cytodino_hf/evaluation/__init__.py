"""From saved predictions to numbers with intervals, pictures and one report."""

"""When to abstain: which answers can be trusted, how many those are, and which cells a person should look at."""

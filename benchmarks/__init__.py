"""Measurements against a plain reference of the published way, in one process, round by round.

Used from a checkout only (`cytodino benchmark ...`); nothing here is installed. Each of `data`, `step`, `predict` and
`startup` is one module that makes cells (what is timed), hands them to `rounds.interleave` and returns a
`results.Result`. `published_data` and `published_model` are the reference.
"""

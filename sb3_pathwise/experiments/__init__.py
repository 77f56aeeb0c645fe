"""
What ``compare`` and ``report`` are made of: the grid, one run, where runs are executed and kept, statistics and pages.

Nothing is imported here, so that reading a report does not need torch, and training does not need matplotlib.
"""

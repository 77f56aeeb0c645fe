"""
The commands ``compare``, ``report`` and ``bench``, and what they are made of: for the first two the grid, one run, where runs
are executed and kept, statistics and pages; for ``bench`` what it measures and what it shows. How a command is found is in
``zoo/cli.py``.

Nothing is imported here, so that training does not need matplotlib.
"""

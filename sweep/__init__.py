"""Sweeps: a recipe with its settings varied over a grid, every point trained, exported and simulated.

:mod:`.grid` makes the points, :mod:`.running` runs them over workers, :mod:`.table` and :mod:`.plot` show the results.
"""

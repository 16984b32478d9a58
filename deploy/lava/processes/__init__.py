"""Lava Processes that lava-nc lacks, one per file with its fixed-point model.

They have a folder of their own, and import lapilli by its full name, because Lava executes every file beside a
Process, by path, in search of models for it.
"""

"""Many independent tasks over processes or a cluster, in any order, with results that are kept.

:mod:`.backends` runs them (joblib, Dask, Ray), :mod:`.kept` keeps what they gave in a folder.
"""

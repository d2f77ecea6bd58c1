"""One file per experiment, ending in ``experiment = Experiment(...)``; pods.py holds several, in ``experiments``.

A later stage is a ``replace`` of the stage before.
"""

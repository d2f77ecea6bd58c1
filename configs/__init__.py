"""One file per experiment, each ending in ``experiment = Experiment(...)``; a later stage is a ``replace`` of the one before."""

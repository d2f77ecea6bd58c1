"""The command line from a checkout: ``python run.py VERB --help``; where the package is installed ``lumina-jax`` is the same."""

from lumina_jax.cli.experiments import REPOSITORY, load_experiment
from lumina_jax.cli.models import TOY_MODEL, load_for_sampling
from lumina_jax.cli.program import VERBS, console, main, parse

__all__ = ["REPOSITORY", "TOY_MODEL", "VERBS", "load_experiment", "load_for_sampling", "main", "parse"]

if __name__ == "__main__":
    console()

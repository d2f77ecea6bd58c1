"""Fields of an experiment that name a repository of the Hugging Face hub, put on this machine before a verb reads them."""

from lumina_jax.cli.arguments import at
from lumina_jax.cli.checks import check_run
from lumina_jax.errors import InputError

HUB_FIELDS = ("start", "data.tokenizer", "vq.path")
"""The fields that may be hf:// addresses."""
START = "start"
"""The folder of a run's ``out`` into which weights of another layout are imported."""


def fetched_fields(cfg, distributed: bool = False, trains: bool = False):
    """``cfg`` with folders of this machine for what its fields name on the hub; weights to start from only where a run ``trains``.

    Raises InputError for several hosts, each of which would fetch a copy of its own, and other UserErrors of the hub.
    """
    from lumina_jax.config import override
    from lumina_jax.hub.address import is_hub

    given = {"start": cfg.start, "data.tokenizer": cfg.data.tokenizer, "vq.path": cfg.vq.path}
    given = {name: value for name, value in given.items() if is_hub(value)}
    if not given:
        return cfg
    if distributed:
        name, value = next(iter(given.items()))
        raise InputError(
            f"{name}={value}: every host of a pod would fetch a copy; run.py convert import {value} gs://BUCKET/FOLDER once, "
            f"and give {name}=gs://BUCKET/FOLDER"
        )
    tokenizer, vq = fetched_files(cfg.data.tokenizer, cfg.vq.path)
    changes = [f"data.tokenizer={tokenizer}", f"vq.path={vq}"]
    if "start" in given and trains:
        check_run(cfg)
        changes.append(f"start={_imported(cfg)}")
    return override(cfg, changes)


def fetched_files(tokenizer: str, vq: str) -> tuple[str, str]:
    """The paths of a tokenizer and an image tokenizer, either of which may be an hf:// address. Raises UserErrors."""
    from lumina_jax.hub.address import is_hub

    if not any(map(is_hub, (tokenizer, vq))):
        return tokenizer, vq
    from convert.fetch import TOKENIZER, VQ, fetch_tokenizer

    return fetch_tokenizer(tokenizer, TOKENIZER), fetch_tokenizer(vq, VQ)


def _imported(cfg) -> str:
    """The folder of weights in lumina_jax's own layout for the hf:// address ``cfg.start``: the repository's, or an import of it.

    Nothing is fetched where the run has a checkpoint to go on from, or the import is there.
    """
    from lumina_jax.train.run_folder import FOLDER

    target = at(cfg.out) / START
    if any((at(cfg.out) / FOLDER).glob("*")) or (target / FOLDER).is_dir():
        return str(target)
    from convert.convert import LAYOUTS, Target, convert, open_source
    from convert.fetch import fetch_checkpoint
    from lumina_jax.progress import print_line

    folder = fetch_checkpoint(cfg.start)
    layout = open_source(folder).layout
    if layout == "ours":
        return folder
    print_line(f"start={cfg.start}: importing it ({LAYOUTS[layout]}) into {target}, as it is")
    for note in convert(folder, target, Target("ours")):
        print_line(f"note: {note}")
    return str(target)

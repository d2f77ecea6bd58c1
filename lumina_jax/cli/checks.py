"""Every address of a command, tried in its first seconds: what is to be read is there, and what is to be written can be."""

from argparse import Namespace
from collections.abc import Iterator

from lumina_jax.cli.arguments import InputPath, OutputFile, OutputPath, check_address, check_output
from lumina_jax.errors import InputError, UserError, prefixed_errors

FREE_BYTES = 1 << 24
"""What every disk that is written to must have free; verbs that write more ask for more."""

STATE_BYTES = 12
"""Of a checkpoint for each parameter: the weight and Adam's two moments, in float32."""


def check_options(options: Namespace) -> None:
    """Raises UserErrors naming the address of the command line that cannot serve.

    Of local inputs nothing is said here: each verb knows best what it looks for. Nor is it of the outputs of a process that is one
    of several.
    """
    for address in _addresses(options):
        if isinstance(address, InputPath):
            for part in address.parts:
                check_input(part)
        elif not vars(options).get("distributed"):
            check_output_space(address)


def _addresses(options: Namespace) -> Iterator[InputPath | OutputPath]:
    for value in vars(options).values():
        for address in value if isinstance(value, list | tuple) else [value]:
            if isinstance(address, InputPath | OutputPath):
                yield address


def check_input(address: str) -> None:
    """Raises UserErrors where nothing is at the URL ``address``; a local path passes."""
    if not check_address(address):
        return
    from lumina_jax.first_checks import check_readable
    from lumina_jax.places import WEB, place

    if place(address).protocol in WEB:
        raise InputError(f"{address} is an address of the web; download it, or put it on a store (gs://, s3://)")
    check_readable(address)


def check_output_space(address: str, needed: int = FREE_BYTES) -> None:
    """Raises UserErrors where fewer than ``needed`` bytes can be written at ``address``, or none for want of permission."""
    from lumina_jax.first_checks import check_space, check_writable
    from lumina_jax.places import place

    where = place(address)
    where = where.parent if isinstance(address, OutputFile) else where
    check_writable(where)
    check_space(where, needed)


def check_field(name: str, address: str, write: bool = False, needed: int = FREE_BYTES) -> None:
    """:func:`check_input`, or :func:`check_output_space`, of the config's field ``name``, which the message begins with."""
    with prefixed_errors(name, UserError):
        if write:
            check_output_space(address, needed)
        else:
            check_input(address)


def check_run(cfg) -> None:
    """Raises UserErrors where the Experiment ``cfg`` cannot write a checkpoint into its ``out``, or its compiled programs, where it
    names a logger that is not installed, and where a store does not have what it reads.

    One process of the run calls this.
    """
    from convert.describe import parameters
    from lumina_jax.train.loggers.opened import check_packages

    check_packages(cfg.log)
    reads = (
        *(("data.path", path) for path in cfg.data.paths),
        ("data.tokenizer", cfg.data.tokenizer),
        ("start", cfg.start),
    )
    for name, address in reads:
        check_field(name, address)
    check_output(cfg.out)
    check_field("out", cfg.out, write=True, needed=max(FREE_BYTES, STATE_BYTES * parameters(cfg.model)))
    if cfg.compile_cache:
        check_field("compile_cache", cfg.compile_cache, write=True)

"""run.py sample --live: an answer shown while it grows."""

import sys

from lumina_jax.errors import InputError, printable

LACKING = 1
"""The exit code where all answers have ended, but a prompt was rejected or a picture is lacking."""


def programs(model, prompts, rows: int, then: str):
    """The wait (compile_cache.compiling) for the programs that answer ``prompts``, ``rows`` at once, and for ``then``."""
    import jax

    from lumina_jax.compile_cache import compiling

    tokens = max(len(prompt.ids) + (prompt.picture or prompt.cfg.max_new_tokens) for prompt in prompts)
    kinds = sorted({(prompt.cfg.parallel, prompt.cfg.guidance != 1, prompt.cfg.cache) for prompt in prompts})
    weights = sorted({f"{w.dtype}" for w in jax.tree.leaves(model)})
    device = jax.devices()[0].device_kind
    return compiling(tokens, then, f"{model.cfg} {weights} {kinds} {min(rows, len(prompts))} rows {device}")


def show_live(model, builder, job, out) -> int:
    """Shows one answer while it grows: text on stdout, each picture in live.png until it is complete."""
    if len(job.items) != 1:
        raise InputError(f"--live shows one answer, not {len(job.items)}; give one prompt")
    from lumina_jax.sample.live import watch
    from lumina_jax.sample.made import made_picture

    (item,) = job.items
    prompt = job.prompts[item[0]]
    options = dict(size=prompt.size, opens=prompt.size is not None)
    events = watch(model, builder.vq, builder.vocab, prompt.ids, job.key(item), prompt.cfg, **options)
    wait = programs(model, [prompt], 1, "beginning the answer")
    pictures = follow(events, out, job.stem(item), wait, lambda number: made_picture(job.made(item), prompt, number))
    if prompt.picture and not pictures:
        print("the answer lacks the picture that was asked for", file=sys.stderr)
        return LACKING
    return 0


def follow(events, out, stem: str, wait, made):
    """Waits for the first of ``events`` in the context ``wait``; ``made`` says what decides picture K (sample.made.made_picture).

    Prints the text, and keeps the newest preview of each picture in live.png, the complete picture in STEM-K.png.

    Returns the files of the complete pictures, in order.
    """
    from lumina_jax.pictures.metadata import save_picture
    from lumina_jax.sample.live import Words

    events, files = iter(events), []
    with wait:
        event = next(events, None)
    while event is not None:
        if isinstance(event, Words):
            print("\n".join(map(printable, event.text.split("\n"))), end="", flush=True)
        else:
            save(event.picture, out / "live.png")
            place = f"{printable(str(out / 'live.png'))}: {event.lines} of {event.total} lines"
            print(f"\r{place} ", end="", file=sys.stderr, flush=True)
            if event.lines == event.total:
                files.append(out / f"{stem}-{event.number}.png")
                save_picture(event.picture, files[-1], made(event.number), new=True)
                print(f"\n{printable(str(files[-1]))}", flush=True)
        event = next(events, None)
    print(flush=True)
    return files


def save(picture, file, new: bool = False) -> None:
    """Writes a picture as PNG; with ``new`` a file that is there stays, and ExistingFileError is raised."""
    from lumina_jax.storage import atomic_write

    with atomic_write(file, new) as temporary:
        picture.save(temporary, format="PNG")

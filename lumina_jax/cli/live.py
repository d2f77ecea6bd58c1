"""run.py sample --live and --chat: an answer shown while it grows, and a dialog."""

import sys
from pathlib import Path

from lumina_jax.errors import InputError, UserError, interrupted, printable

LACKING = 1
"""The exit code where all answers have ended, but a prompt was rejected or a picture is lacking."""
COMPILING = 20
"""About how many seconds a program takes to compile."""


def show_live(model, builder, job, out: Path) -> int:
    """Shows one answer while it grows: text on stdout, each picture in live.png until it is complete."""
    if len(job.items) != 1:
        raise InputError(f"--live shows one answer, not {len(job.items)}; give one prompt")
    from lumina_jax.sample.live import watch

    (item,) = job.items
    prompt = job.prompts[item[0]]
    options = dict(size=prompt.size, opens=prompt.size is not None)
    events = watch(model, builder.vq, builder.vocab, prompt.ids, job.key(item), prompt.cfg, **options)
    pictures = _follow(events, out, job.stem(item))
    if prompt.picture and not pictures:
        print("the answer lacks the picture that was asked for", file=sys.stderr)
        return LACKING
    return 0


def _follow(events, out: Path, stem: str) -> int:
    """Prints the text, and keeps the newest preview of each picture in live.png, the complete picture in STEM-K.png.

    Returns the number of complete pictures.
    """
    from lumina_jax.progress import waiting
    from lumina_jax.sample.live import Words
    from lumina_jax.storage import atomic_write

    def save(picture, file: Path, new: bool = False) -> str:
        with atomic_write(file, new) as temporary:
            picture.save(temporary, format="PNG")
        return printable(str(file))

    events, pictures = iter(events), 0
    with waiting("compiling and beginning the answer", COMPILING):
        event = next(events, None)
    while event is not None:
        if isinstance(event, Words):
            print("\n".join(map(printable, event.text.split("\n"))), end="", flush=True)
        else:
            shown = save(event.picture, out / "live.png")
            print(f"\r{shown}: {event.lines} of {event.total} lines ", end="", file=sys.stderr, flush=True)
            if event.lines == event.total:
                pictures += 1
                print(f"\n{save(event.picture, out / f'{stem}-{event.number}.png', new=True)}", flush=True)
        event = next(events, None)
    print(flush=True)
    return pictures


def hold_dialog(model, builder, seed: int, cfg, out: Path) -> int:
    """A dialog on stdin and stdout, until an empty line or the end of the input."""
    from lumina_jax.sample.job import seed_key
    from lumina_jax.sample.live import Chat
    from lumina_jax.sample.prompt import open_image, pictures_in

    chat, turn, warned = Chat(model, builder, seed_key(seed), cfg), 0, False
    print(
        'a line is a turn; a word @file.png or @"my file.png" is a picture, @@ an @; an empty line ends',
        file=sys.stderr,
    )
    while line := _read_line():
        try:
            text, files = pictures_in(line)
            with interrupted(f"the pictures so far are in {out}"):
                _follow(chat.say(text, [open_image(file) for file in files]), out, f"turn{turn}")
        except UserError as error:
            print(printable(f"run.py sample: {error}; the dialog goes on"), file=sys.stderr)
            continue
        turn += 1
        if chat.tokens > builder.trained and not warned:
            warned = True
            print(
                f"warning: the dialog has {chat.tokens:,} tokens, more than the {builder.trained:,} that the model was trained on; "
                "expect poor answers",
                file=sys.stderr,
            )
    return 0


def _read_line() -> str:
    """The next line of stdin without space around it; "" at the end. Bytes that are no UTF-8 stay in it as half surrogates."""
    if sys.stdin is None:
        raise InputError("--chat reads its lines from stdin, which is closed")
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")
    try:
        return (input("> ") if sys.stdin.isatty() else sys.stdin.readline()).strip()
    except EOFError:
        return ""

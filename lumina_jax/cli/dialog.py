"""run.py sample --chat: a dialog on stdin and stdout, its commands, and what is kept of it."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress

from lumina_jax.cli.arguments import at
from lumina_jax.cli.live import follow, save
from lumina_jax.cli.results import claimed
from lumina_jax.errors import InputError, UserError, interrupted, prefixed_errors, printable
from lumina_jax.numbers import pixel_size

BLOCK = '"""'
"""What begins and ends a message of several lines."""
COMMAND = re.compile(r"/(?!/)(\S*)\s*(.*)", re.DOTALL)
COMMANDS = {
    "paint": ("CAPTION", "paint a picture of it, of the size of /size"),
    "size": ("WxH", "the size in pixels of what /paint paints; alone it says which it is"),
    "clear": ("", "forget all turns and begin anew"),
    "save": ("FILE", "write the dialog: FILE.jsonl to go on with, FILE.html to read, with its pictures"),
    "load": ("FILE", "go on with the last dialog of a .jsonl file"),
    "help": ("", "list this"),
}
"""By name, what a command takes and what it does."""
HELP = f"""a line is a turn; it goes on in the next line when it ends in \\, and {BLOCK} around it lets it have any lines
a word @file.png or @"my file.png" is a picture, @@ an @; a line that begins with // begins with /
"Generate an image of 512x512 according to the following prompt:" and a caption below paint at that size
an empty line ends"""


def hold_dialog(model, builder, seed: int, settings, out, size=None, history: str | None = None, origin=None) -> int:
    """A dialog until an empty line or the end of the input; ``size`` (width, height) in px is that of /paint, ``history`` a file
    whose last dialog goes on, ``origin`` (sample.made) what its pictures tell of the model."""
    from lumina_jax.sample.transcript import TRANSCRIPT

    if sys.stdin is None:
        raise InputError("--chat reads its lines from stdin, which is closed")
    session = Session(model, builder, seed, settings, out, size, origin)
    if history:
        session.load(history)
    with claimed(out / TRANSCRIPT), interrupted(f"the pictures and {TRANSCRIPT} so far are in {out}"):
        _note("a line is a turn, a word @file.png a picture; /help lists more; an empty line ends")
        for message in read_messages():
            try:
                session.take(message)
            except UserError as error:
                _note(printable(f"run.py sample: {error}; the dialog goes on"))
    return 0


class Session:
    """A dialog, and what a person may do with it: say something, or one of COMMANDS, which has a method of its name."""

    def __init__(self, model, builder, seed: int, settings, out, size: tuple[int, int] | None, origin):
        from lumina_jax.sample.job import seed_key
        from lumina_jax.sample.live import LiveChat
        from lumina_jax.sample.prompt import FREE_FORM
        from lumina_jax.sample.transcript import Transcript

        self._builder, self._settings, self._out = builder, settings, out
        self._chat = LiveChat(model, builder, seed_key(seed), settings(FREE_FORM))
        self._transcript = Transcript(out)
        if size:
            builder.check_paintable(size)
        self._size, self._seed, self._origin = size, seed, origin
        self._turn, self._warned = 0, False

    def take(self, message: str) -> None:
        """Does a command, or answers a message. Raises UserError where that cannot be."""
        from lumina_jax.conversation import requested_size
        from lumina_jax.sample.files import open_image, pictures_in

        if match := COMMAND.fullmatch(message):
            self._do(match[1], match[2].strip())
        else:
            text, names = pictures_in(message[message.startswith("//") :])
            self._say(text, [open_image(name) for name in names], requested_size(text))

    def _do(self, name: str, words: str) -> None:
        if name not in COMMANDS:
            raise InputError(
                f"no command /{name}; the commands are {', '.join(f'/{known}' for known in COMMANDS)}; write // for a message "
                "that begins with /"
            )
        takes = COMMANDS[name][0]
        if takes and not words and name != "size":
            raise InputError(f"/{name} needs a {takes} behind it")
        if words and not takes:
            raise InputError(f"/{name} takes nothing behind it, not {words!r}")
        getattr(self, name)(*[words] * bool(words))

    def paint(self, caption: str) -> None:
        size = self._size or self._builder.square
        self._say(self._builder.request(caption, size), [], size)

    def size(self, words: str = "") -> None:
        if words:
            size = pixel_size(words)
            self._builder.check_paintable(size)
            self._size = size
        width, height = self._size or self._builder.square
        _note(f"/paint paints {width}x{height}")

    def clear(self) -> None:
        self._chat.begin()
        self._transcript.begin(self._chat.dialog, ())
        _note("a new dialog")

    def load(self, name: str) -> None:
        from lumina_jax.sample.dialog import parse_dialog
        from lumina_jax.sample.files import read_lines

        file = at(os.path.expanduser(name))
        if not (lines := read_lines(file)):
            raise InputError(f"{file} holds no dialog; write one a line")
        with prefixed_errors(f"{file}, line {lines[-1].number}"):
            record = lines[-1].record()
            _, pictures, _ = parse_dialog(record)
            self._chat.begin(self._builder.dialog(record, file.parent))
        self._transcript.begin(self._chat.dialog, [at(picture, file.parent) for picture in pictures])
        _note(f"a dialog of {len(self._chat.dialog.turns)} turns goes on")

    def save(self, name: str) -> None:
        self._transcript.save(at(os.path.expanduser(name)))
        print(printable(name), flush=True)

    def help(self) -> None:
        rows = [f"{f'/{name} {takes}':16}{does}" for name, (takes, does) in COMMANDS.items()]
        _note("\n".join([HELP, *rows]))

    def _made(self, number: int) -> dict:
        """What decides picture ``number`` of the answer that is being given."""
        from lumina_jax.sample.made import made, made_picture

        prompt = self._chat.asked
        return made_picture(made(self._origin, prompt, self._seed, prompt.place), prompt, number)

    def _say(self, text: str, images: list, size: tuple[int, int] | None) -> None:
        """Answers a message, with a picture of ``size`` first where one is asked for, and keeps both."""
        from lumina_jax.progress import waiting

        chat, stem = self._chat, f"turn{self._turn}"
        before, self._turn = len(chat.dialog.pictures), self._turn + 1
        cfg = self._settings("generate") if size else None
        wait = waiting("loading or compiling programs, then beginning the answer")
        painted = follow(chat.say(text, images, size=size, cfg=cfg), self._out, stem, wait, self._made)
        new = chat.dialog.pictures[before:]
        shown = [self._out / f"{stem}-shown-{number}.png" for number in range(len(images))]
        for picture, file in zip(new, shown, strict=False):
            save(picture.image, file, new=True)
        # A picture that the limit of tokens cuts behind its last line is painted, but is none of the dialog.
        self._transcript.keep(chat.dialog, [*shown, *painted][: len(new)])
        if chat.tokens > self._builder.trained and not self._warned:
            self._warned = True
            _note(
                f"warning: the dialog has {chat.tokens:,} tokens, more than the {self._builder.trained:,} that the model was "
                "trained on; expect poor answers"
            )


def read_messages() -> Iterator[str]:
    """The messages of stdin until an empty line or its end, without space around them.

    Bytes that are no UTF-8 stay in them as half surrogates.
    """
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")
    if sys.stdin.isatty():
        with suppress(ImportError):  # Windows has none
            import readline

            # Several lines that are pasted at once come as one.
            readline.parse_and_bind("set enable-bracketed-paste on")
    while line := (_read_line("> ") or "").strip():
        if line.startswith(BLOCK):
            lines = [line[len(BLOCK) :]]
            while not lines[-1].rstrip().endswith(BLOCK) and (line := _read_line(". ")) is not None:
                lines.append(line)
            yield "\n".join(lines).strip().removesuffix(BLOCK).strip()
        else:
            lines = [line]
            while lines[-1].endswith("\\"):
                lines[-1] = lines[-1][:-1].rstrip()
                lines.append((_read_line(". ") or "").strip())
            yield "\n".join(lines).strip()


def _read_line(prompt: str) -> str | None:
    """The next line of stdin, None at its end."""
    try:
        line = input(prompt) if sys.stdin.isatty() else sys.stdin.readline()
    except EOFError:
        return None
    return line.removesuffix("\n") if line or sys.stdin.isatty() else None


def _note(text: str) -> None:
    print("\n".join(map(printable, text.split("\n"))), file=sys.stderr)

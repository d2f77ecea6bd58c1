"""The commands and code that the guides print: read from Markdown, and split into words by bash itself."""

import os
import re
import shlex
import subprocess
import tempfile
from pathlib import Path

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`]+)`")
PROGRAMS = ("python ", "run.py ", ".venv/bin/python ")
OURS = re.compile(r"^(\S*python[\d.]* )?(-u )?(run\.py|tests/bench/\w+\.py)\b")
RECORDER = r"""
record() { printf '%s\0' "$#" "$@" >&3; }
command_not_found_handle() { record "$@"; }
for folder in .venv .venv312; do
    for program in python pip ruff mypy; do eval "function $folder/bin/$program { record $program \"\$@\"; }"; done
done
function .ci/run { record .ci/run; }
PATH=/nowhere
"""
"""Bash that writes down the programs a script calls, as a count and that many words, and starts none of them."""


def blocks(text: str, language: str) -> list[tuple[int, str]]:
    """(line number, content) of each fenced block of ``language`` ("" for none)."""
    matches = [match for match in FENCE.finditer(text) if match[1] == language]
    return [(text.count("\n", 0, match.start()) + 1, match[2]) for match in matches]


def spans(text: str) -> list[str]:
    """The inline code of a text that calls Python or run.py, each once."""
    code = [" ".join(match.split()) for match in SPAN.findall(FENCE.sub("", text))]
    return list(dict.fromkeys(line for line in code if line.startswith(PROGRAMS)))


def named_files(text: str) -> list[str]:
    """The files of the repository, from its root on, that a text names in code or links to."""
    return re.findall(r"(?:`|\]\((?:\.\./)*)((?:lumina_jax|tests|configs|convert|\.ci)/[\w./]*\w)(?=[`)#:\s])", text)


def headings(text: str) -> list[tuple[int, str]]:
    """(level, title) of each heading of a text, outside its blocks of code."""
    found = re.findall(r"^(#{1,6}) +(.*?)\s*$", FENCE.sub("", text), re.MULTILINE)
    return [(len(marks), title) for marks, title in found]


def anchors(text: str) -> list[str]:
    """The anchors that GitHub makes of the headings of a text: lower case, no punctuation, a number behind the second of a name."""
    seen: dict[str, int] = {}
    names = []
    for _, title in headings(text):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        names.append(f"{name}-{seen[name]}" if name in seen else name)
        seen[name] = seen.get(name, 0) + 1
    return names


def links(text: str) -> list[str]:
    """The targets of all links and pictures of a text, outside its code."""
    return re.findall(r"\]\(([^()\s]+)\)", re.sub(r"`[^`\n]*`", "", FENCE.sub("", text)))


def contents(text: str) -> list[str]:
    """The lines of the list that stands first behind the title of a text."""
    behind = text.split("\n\n", 2)[1:2]
    return [line for line in behind[0].splitlines() if line.startswith("- ")] if behind else []


def commands(script: str, folder: Path | None = None) -> list[str]:
    """The programs that a bash script calls, in order and quoted for a shell.

    Builtins such as printf do run, and redirections do write: in ``folder``, or else in an empty one that is removed again.
    Raises ValueError with bash's words when the script is no bash.
    """
    with tempfile.TemporaryFile() as calls, tempfile.TemporaryDirectory() as empty:
        bash = ["bash", "-c", f"exec 3>&{calls.fileno()}\n{RECORDER}{script}"]
        pipes = dict(pass_fds=(calls.fileno(),), stdin=subprocess.DEVNULL, capture_output=True, text=True)
        # The guides set BUCKET in another block than they use it in.
        environment = {**os.environ, "LC_ALL": "C", "BUCKET": "MY_BUCKET"}
        result = subprocess.run(bash, cwd=folder or empty, env=environment, **pipes)
        if result.returncode or result.stderr:
            raise ValueError(f"bash ends with code {result.returncode}: {result.stderr}")
        calls.seek(0)
        words = iter(calls.read().decode().split("\0"))
    lines = []
    while count := next(words):
        lines.append(shlex.join([next(words) for _ in range(int(count))]))
    return lines


def arguments(command: str) -> list[str]:
    """The words of a command of ours from run.py or the benchmark's file on: ["run.py", "train", ...]."""
    return shlex.split(OURS.sub(r"\3", command))


EXPANDED = frozenset("{}*?[]()!&;$~")
"""Letters that some shell takes for more than a letter when no quotation marks stand around them."""
OPERATOR = re.compile(r"[&|;]+")


def unquoted(script: str) -> list[str]:
    """The words of our commands in a bash script that a shell would expand, split or run, because they are not quoted."""
    found = []
    for line in script.replace("\\\n", " ").splitlines():
        command: list[str] = []
        for word in [*_words(line), ";"]:
            command += [word.rstrip(";")] * (OPERATOR.fullmatch(word) is None)
            if word.endswith((";", "&", "|")) and OURS.search(" ".join(command)):
                ends = (number for number, part in enumerate(command) if re.match(r"\d*[<>]", part))
                found += [part for part in command[: next(ends, None)] if _plain(part) & EXPANDED]
            if word.endswith((";", "&", "|")):
                command = []
    return found


def _words(line: str) -> list[str]:
    """The words of a line up to its comment, with their quotation marks; an operator between spaces is a word."""
    words = re.findall(r"""(?:'[^']*'|"[^"]*"|\\.|[^\s'"\\])+""", line)
    return words[: next((number for number, word in enumerate(words) if word.startswith("#")), None)]


def _plain(word: str) -> set[str]:
    """The letters of a word outside of quotation marks and but for variables, such as $NAME."""
    return set(re.sub(r"""'[^']*'|"[^"]*"|\\.|\$\w+""", "", word))

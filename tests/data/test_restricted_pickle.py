"""Laws of the restricted unpickler: plain values come back as they were, and whatever else a pickle does is refused, never done."""

import copyreg
import os
import pickle
import pickletools
import tracemalloc
from types import NoneType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lumina_jax.data.sources import restricted_pickle
from lumina_jax.data.sources.restricted_pickle import MAX_BYTES, MAX_STEPS, loads
from lumina_jax.errors import InputError

PROTOCOLS = range(2, pickle.HIGHEST_PROTOCOL + 1)
SCALARS = st.one_of(st.integers(-(2**70), 2**70), st.integers(0, 70_000), st.text(max_size=5), st.none())
VALUES = st.one_of(
    SCALARS, st.lists(SCALARS), st.dictionaries(st.text(max_size=3), st.one_of(SCALARS, st.lists(SCALARS)))
)
COMMAND = b"touch ran"
"""What evil pickles try to run, in the folder of the test."""


class Evil:
    def __reduce__(self):
        return os.system, (COMMAND.decode(),)


def sample(extra: object) -> dict[str, object]:
    return {"token": [0, 5, extra], "label": [-100, 5, 7], "id": 3}


EVIL = {
    **{f"reduce, protocol {protocol}": pickle.dumps(sample(Evil()), protocol) for protocol in range(6)},
    "global": b"cos\nsystem\n(S'touch ran'\ntR.",
    "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x09touch ran\x85R.",
    "inst": b"(S'touch ran'\nios\nsystem\n.",
    "obj": b"(cos\nsystem\nS'touch ran'\no.",
    "new object": b"\x80\x02cos\nsystem\nU\x09touch ran\x85\x81.",
    "new object, with keywords": b"\x80\x04cos\nsystem\nU\x09touch ran\x85}\x92.",
    "build": b"\x80\x02]}b.",
    **{
        f"extension {opcode}": b"\x80\x02" + code
        for opcode, code in ((1, b"\x82\xf0."), (2, b"\x83\xf0\0."), (4, b"\x84\xf0\0\0\0."))
    },
    "persistent id": b"Pos.system\n.",
    "persistent id on the stack": b"\x80\x02U\x01xQ.",
    "buffer": b"\x80\x05\x97.",
    "numpy numbers": pickle.dumps(sample(np.int64(7))),
    "numpy array": pickle.dumps({"token": np.arange(3), "label": np.arange(3), "id": 0}),
    "torch tensor": b"\x80\x02}q\x00X\x05\x00\x00\x00tokenq\x01ctorch._utils\n_rebuild_tensor_v2\nq\x02.",
    "tuple": pickle.dumps(sample((1, 2))),
    "set": pickle.dumps(sample({1, 2})),
    "bytes": pickle.dumps(sample(b"x")),
    "truth": pickle.dumps(sample(True)),
    "float": pickle.dumps(sample(1.0)),
    "list in a list": pickle.dumps(sample([1])),
    "dict in a list": pickle.dumps(sample({})),
    "dict in a dict": pickle.dumps({"token": {"a": 1}}),
}
BOMBS = {
    "deep lists": b"\x80\x04" + b"]" * 10**6 + b"a" * (10**6 - 1) + b".",
    "marks": b"(" * 10**6,
    "empty dicts": b"}" * 10**6,
    "frame": b"\x80\x04\x95" + b"\xff" * 8 + b".",
    "long text": b"\x80\x02X\xff\xff\xff\xff.",
    "long bytes": b"\x80\x05\x96" + b"\xff" * 7 + b"\x0f.",
    "long number": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "doubling": b"\x80\x02K\x01" + b"2" * 10**6 + b".",
    "a list into itself": b"\x80\x02]q\0h\0a.",
    "steps": b"\x80\x02]q\0" + b"(h\0e" * MAX_STEPS + b".",
    "size": b"\x80\x02](" + b"K\x01" * (MAX_BYTES // 2) + b"e.",
}
BROKEN = [
    *(
        b"",
        b".",
        b"\x80",
        b"\x80\x02.",
        b"]",
        b"](K",
        b"]K\x01.",
        b"]]..",
        b"].]",
        b"\xfe.",
        b"a.",
        b"e.",
        b"(e.",
        b"s.",
        b"u.",
        b"(u.",
    ),
    *(
        b"](a.",
        b"]K\x01e.",
        b"}(K\x01K\x02u.",
        b"}(X\0\0\0\0u.",
        b"}X\x01\0\0\0aK\x01s.}",
        b"h\0.",
        b"q\0.",
        b"(q\0.",
        b"]\x8c\x01\xff.",
    ),
    *(b"K\x01K\x02a.", b"}]e.", b"N(K\x01e.", b"}(\x8c\x01aK\x01\x8c\x01aK\x02u.", b"\x94."),
]


@given(VALUES, st.sampled_from(PROTOCOLS))
@settings(max_examples=100, deadline=None)
def test_plain_values_come_back(value, protocol):
    assert loads(pickle.dumps(value, protocol)) == value


def test_shared_values_and_long_lists_come_back():
    shared = list(range(0, 65536, 7))
    value = {"token": shared, "label": shared, "id": "a" * 300, "a": "id", "b": "id"}
    for protocol in PROTOCOLS:
        assert loads(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("name", EVIL)
def test_an_evil_pickle_is_refused_and_never_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copyreg.add_extension("os", "system", 0xF0)
    try:
        with pytest.raises(InputError) as refusal:
            loads(EVIL[name])
    finally:
        copyreg.remove_extension("os", "system", 0xF0)
    assert refusal.value.cause == restricted_pickle.CAUSE
    assert not os.path.exists("ran")


def test_a_place_far_in_the_memo_takes_no_memory():
    assert loads(b"\x80\x02]r\xff\xff\xff\xff.") == []


def test_pickle_itself_would_run_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("reduce, protocol 4", "global", "stack global", "inst", "obj"):
        pickle.loads(EVIL[name])
        os.remove("ran")


def test_a_refusal_says_what_the_pickle_names_and_the_cure():
    for name in ("global", "stack global", "reduce, protocol 4"):
        with pytest.raises(
            InputError, match=r"opcode (STACK_)?GLOBAL, which names b'(os|posix)\.system'; .*tolist\(\)"
        ):
            loads(EVIL[name])
    with pytest.raises(InputError, match=r"names b'numpy.*scalar'"):
        loads(EVIL["numpy numbers"])


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_with_little_memory(name):
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            loads(BOMBS[name])
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("content", BROKEN)
def test_damage_is_refused(content):
    with pytest.raises(InputError):
        loads(content)


PIECES = [
    *(bytes([code]) for code in range(256) if chr(code) in pickletools.code2op),
    *(
        b"K\x05",
        b"M\x05\x02",
        b"J\x9c\xff\xff\xff",
        b"\x8c\x02os",
        b"\x8c\x06system",
        b"\x8c\x09touch ran",
        b"X\x01\0\0\0a",
        b"\x80\x04",
    ),
    *(
        b"cos\nsystem\n",
        b"(S'touch ran'\nios\nsystem\n",
        b"\x8c\x02os\x8c\x06system\x93",
        b"(h\0e",
        b"}\x94(",
        b"]\x94(",
        b"S'a'\n",
    ),
]


@given(st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=3)), max_size=40))
@settings(max_examples=300, deadline=None)
def test_no_program_does_more_than_make_plain_values(pieces):
    try:
        value = loads(b"".join(pieces) + b".")
    except InputError:
        return
    held = [*value.values()] if type(value) is dict else [value]
    assert {type(item) for item in held} <= {int, str, NoneType, list}
    assert {type(item) for items in held if type(items) is list for item in items} <= {int, str, NoneType}
    assert not os.path.exists("ran")


@given(st.integers(0, 200), st.binary(min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_damage_to_a_sample_never_names_or_calls(at, damage):
    whole = pickle.dumps(sample(7), 4)
    content = whole[:at] + damage + whole[at + len(damage) :]
    try:
        assert type(loads(content)) in (dict, list, int, str, NoneType)
    except InputError as error:
        assert str(error)

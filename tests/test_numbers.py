"""Numbers and sizes: one rule for options, fields and prompts; what no generator or array takes is refused in one line."""

import pytest

import run
from lumina_jax.config import Experiment, override
from lumina_jax.errors import InputError
from lumina_jax.numbers import FLOATS, LARGEST, dtype_name, pixel_size, real_number, seed_number, whole_number

pytestmark = pytest.mark.smoke


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("007", 7), (" 8 ", 8), ("1_000", 1000), ("٤٢", 42), (str(LARGEST), LARGEST), ("+3", 3)],
)
def test_a_whole_number_is_read_in_digits_of_any_script(text, value):
    assert whole_number(text) == seed_number(text) == value


def test_a_dtype_has_a_long_and_a_short_name():
    assert [dtype_name(name) for name in ("fp32", "bf16", "fp16")] == [dtype_name(name) for name in FLOATS] == [*FLOATS]
    for name in ("float64", "half", "", "FP32"):
        with pytest.raises(InputError, match=f"'{name}' is no dtype of weights; give one of float32, .*, fp16"):
            dtype_name(name)
    for verb in (["convert", "import", "a", "b"], ["sample"], ["refine", "a"], ["evaluate"]):
        assert (
            run.parse([*verb, "--dtype", "bf16"]).dtype == run.parse([*verb, "--dtype", "bfloat16"]).dtype == "bfloat16"
        )


@pytest.mark.parametrize(
    "text", ["", "²", "½", "Ⅳ", "1e3", "1.0", "0x10", "-1", "--1", "1 2", "nan", "ten", "1__0", "\x00"]
)
def test_what_is_no_whole_number_is_refused(text):
    with pytest.raises(InputError, match="is not a whole number of at least 0"):
        whole_number(text)
    with pytest.raises(InputError, match="is not a seed; give a whole number from 0 to 9223372036854775807"):
        seed_number(text)


@pytest.mark.parametrize("text", [str(LARGEST + 1), "9" * 40, "9" * 5000])
def test_a_number_beyond_63_bits_is_refused_in_a_short_line(text):
    with pytest.raises(InputError, match="is too large; give at most 9223372036854775807") as caught:
        whole_number(text)
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize(("text", "value"), [("0.5", 0.5), ("1e-4", 1e-4), ("-2", -2.0), (" 3. ", 3.0)])
def test_a_real_number_is_read(text, value):
    assert real_number(text) == value


@pytest.mark.parametrize("text", ["nan", "-inf", "1e999", "", "0,5", "five", "1/2"])
def test_what_is_no_finite_number_is_refused(text):
    with pytest.raises(InputError, match="is not a number, such as"):
        real_number(text)


@pytest.mark.parametrize("text", ["96x64", "96X64", "96×64", "96 x 64", "96*64", " 96x64"])
def test_a_size_is_read_however_it_is_written(text):
    assert pixel_size(text) == (96, 64)


@pytest.mark.parametrize("text", ["96", "x64", "96x", "96x64x3", "²x64", "96.5x64", "-96x64", "96,64", "9" * 99 + "x1"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(InputError, match="is not WIDTHxHEIGHT in pixels, such as 96x64"):
        pixel_size(text)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("optim.steps=1e3", "expected int: 1e3 is not a whole number"),
        ("optim.steps=²", "expected int: ² is not"),
        (f"data.batch={'9' * 30}", "too large"),
        ("optim.lr=nan", "expected float: nan is not a number"),
        ("data.max_ratio=inf", "expected float: inf is not a number"),
        ("data.buckets=64,x", "data.buckets='x': expected int"),
        ("seed=-1", "seed=-1; it must be a whole number from 0"),
    ],
)
def test_a_field_is_read_by_the_same_rule(change, words):
    with pytest.raises(InputError) as caught:
        override(Experiment(), [change])
    assert words in str(caught.value)


def test_a_field_may_be_negative_where_that_says_something():
    assert override(Experiment(), ["mesh.fsdp=1", "mesh.tensor=-1"]).mesh.tensor == -1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sample", "--prompt", "x", "--seed", "²"], "² is not a seed"),
        (["sample", "--prompt", "x", "--size", "²x9"], "is not WIDTHxHEIGHT"),
        (["evaluate", "--toy", "²"], "is not a whole number of at least 1"),
        (["pretokenize", "c.py", "--source", "toy:9", "--sizes", "64,²"], "is not one or more whole numbers"),
        (["pretokenize", "c.py", "--source", "toy:9", "--shard-records", "9" * 5000], "is too large"),
        (["convert", "verify", "a", "b", "--tolerance", "nan"], "nan is not a number of at least 0"),
        (["convert", "verify", "a", "b", "--tolerance", "-1"], "-1 is not a number of at least 0"),
        (["convert", "verify", "a", "b", "--tokens", "0"], "0 is not a whole number of at least 1"),
        (["convert", "export", "a", "b", "--layout", "hf", "--shards", "0"], "0 is not a whole number of at least 1"),
        (["data", "inspect", "x", "--samples", "-3"], "-3 is not a whole number of at least 1"),
        (["compile", "c.py", "--topology", "v5p:4x4x4", "--slices", "0"], "0 is not a whole number"),
        (["train", "c.py", "--distributed", "--process", "-1"], "-1 is not a whole number of at least 0"),
    ],
)
def test_an_option_is_read_by_the_same_rule(arguments, words, capsys):
    with pytest.raises(SystemExit) as ended:
        run.parse(arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and words in error and error.count("\n") == 1


@pytest.mark.parametrize("worker", ["1/0", "0/0", "2/2", "-1/2", "²/3", "1", "a/b", "0/2/3"])
def test_a_share_of_the_work_that_is_none_is_refused(worker):
    from lumina_jax.cli.processes import worker as parse

    with pytest.raises(InputError, match="expected --worker I/N with I from 0 to N - 1"):
        parse(worker)
    assert parse("1/2") == (1, 2)

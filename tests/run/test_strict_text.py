"""What YAML and JSON mean to options, and what is refused because it could be read in two ways."""

from __future__ import annotations

import dataclasses
import typing

import pytest

from run.config import RunConfig
from run.config_file import load_config
from run.errors import ConfigError
from run.strict_text import MAX_BYTES, TextError, read_json, read_yaml
from tests.helpers.places import ROOT

DEMO = ROOT / "configs" / "demo.yaml"


@pytest.mark.parametrize(
    "name", ["2024-05-01", "2", "007", "1e3", "0x1f", "1_000", "yes", "off", "true", "1.5", "12e03", "2001-12-14t21"]
)
def test_a_name_is_what_is_written(name, tmp_path):
    assert load_config(DEMO, [f"name={name}"]).name == name
    file = tmp_path / "a.yaml"
    file.write_text(DEMO.read_text().replace("name: shapes", f"name: {name}"))
    assert load_config(file, ["model.tasks=[]"]).data.tasks[0].name == name


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("steps=1_000", 1000),
        ("seed=0x10", 16),
        ("optimizer.lr=1e-3", 1e-3),
        ("optimizer.lr=.5", 0.5),
        ("optimizer.clip=3", 3),
    ],
)
def test_numbers(override, value):
    node: object = load_config(DEMO, [override])
    for part in override.partition("=")[0].split("."):
        node = getattr(node, part)
    assert node == value


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("steps=010", "valid integer, got '010'"),  # 8 to YAML 1.1
        ("steps=1:30", "valid integer, got '1:30'"),  # 90 to YAML 1.1
        ("steps=1e3", "valid integer, got 1000.0"),
        ("optimizer.lr=.nan", "optimizer.lr must be a finite number"),
        ("optimizer.lr=-.inf", "optimizer.lr must be a finite number"),
        ("data.mixture_temperature=1e999", "data.mixture_temperature must be a finite number"),
        ("optimizer.betas=[0.9, .nan]", "optimizer.betas.1 must be a finite number"),
        ("data.tasks.shapes.loss_weight=.inf", "data.tasks.shapes.loss_weight must be a finite number"),
        ("data.tasks.shapes.loss_weight=-1", "loss_weight=-1"),
        ("data.max_bad_fraction=-0.1", "max_bad_fraction=-0.1 must lie in [0, 1]"),
        ("data.max_bad_fraction=2", "max_bad_fraction=2"),
        ("model.layer_scale=-1", "layer_scale=-1"),
        ("max_skipped_steps=-1", "max_skipped_steps=-1: must not be negative"),
        ('data.tasks.shapes.path="a\\0b"', "data.tasks.shapes.path must have no NUL character"),
        ("threads=100000", "threads=100000: must be 1024 at most"),
        ("name=", "name"),
        ("name=~", "name"),
        ("name=" + "x" * 201, "200 at most"),
        ("optimizer={lr: 1, lr: 2}", "key lr stands twice, in lines 1 and 1"),
        ("steps=!!binary aGk=", "tag:yaml.org,2002:binary is not used"),
        ("steps=!!python/object/apply:os.system [id]", "not YAML"),
        ("optimizer=" + "[" * 5000, "nested deeper than"),
        ("seed=" + "9" * 5000, "not YAML"),
        ("data.tasks={? [a] : 1}", "a key must be a word"),
    ],
)
def test_refused_in_one_line(override, said):
    with pytest.raises(ConfigError) as caught:
        load_config(DEMO, [override])
    message = str(caught.value)
    assert said in message and "\n" not in message and override.partition("=")[0] in message


def numbers_of(kind: typing.Any, parents: tuple[str, ...] = ()) -> typing.Iterator[tuple[str, bool]]:
    """(key, whether it takes two) of all numeric options; `shapes` for an element of a list."""
    for name, hint in typing.get_type_hints(kind).items():
        below = [a for a in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(a)]
        if below:
            element = ("shapes",) if typing.get_origin(hint) is tuple else ()
            yield from numbers_of(below[0], (*parents, name, *element))
        elif {int, float} & {hint, *typing.get_args(hint)}:
            yield ".".join((*parents, name)), typing.get_origin(hint) is tuple


def test_no_numeric_option_takes_what_is_negative():
    keys = list(numbers_of(RunConfig))
    assert len(keys) > 60
    for key, two in keys:
        with pytest.raises(ConfigError):
            load_config(DEMO, [f"{key}={'[-1, -1]' if two else -1}"])


def test_a_key_that_stands_twice_is_named_with_its_lines(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("steps: 5\nseed: 1\nsteps: 6\n")
    with pytest.raises(ConfigError, match=r"a\.yaml: key steps stands twice, in lines 1 and 3: remove one"):
        load_config(file)


def test_a_merged_mapping_may_be_overridden():
    assert read_yaml("a: &x {b: one, c: two}\nd: {<<: *x, b: three}")["d"] == {"b": "three", "c": "two"}


def test_aliases_that_stand_for_more_than_memory_holds():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(TextError, match="more than 20,000 values"):
        read_yaml("\n".join(lines))
    with pytest.raises(TextError, match="nested deeper than"):
        read_yaml("a: &a [*a]")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_that_say_what_they_are(encoding, tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(DEMO.read_text().replace("name: shapes", "name: Tiergrößen"), encoding=encoding)
    assert load_config(file).data.tasks[0].name == "Tiergrößen"


@pytest.mark.parametrize(
    "content", ["name: Größe".encode("latin-1"), "name: 日本".encode("shift-jis"), "a: ü".encode("utf-16-le")]
)
def test_other_encodings_are_one_line(content, tmp_path):
    file = tmp_path / "a.yaml"
    file.write_bytes(b"steps: 1\n" + content)
    with pytest.raises(ConfigError, match=r"a\.yaml: (line 2 is not UTF-8 text: save the file as UTF-8|not YAML)"):
        load_config(file)


def test_a_file_that_is_no_configuration(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_bytes(b"a" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="larger than 1,048,576 bytes"):
        load_config(file)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": 1, "a": 2}', "key a stands twice"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": 1,}', "line 1: not JSON"),
        (b'{"a": "\xe4"}', "line 1 is not UTF-8"),
        (b"[" * 100_000, "nested too deep"),
        (b"9" * 5000, "not JSON"),
    ],
)
def test_json(content, said):
    with pytest.raises(TextError, match=said):
        read_json(content)
    assert read_json(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}

"""Names of shards: what they expand to, what a list may say, what of them is shown."""

from __future__ import annotations

import pytest

from data.text.tokenizer import Tokenizer
from data.text.vocabulary import Vocabulary
from data.transport import FetchError, expand, join
from data.transport.urls import masked, shown
from run.changes import told_changes
from run.config_file import dump_config, load_config
from run.folder import write_run_files
from run.resume import earlier_start
from run.sinks.tracking import without_credentials
from tests.helpers.runs import ROOT

LISTS = {
    "https://host/sets/all.txt": "# two parts\ntrain/{0..1}.tar\n\n@more/rest.txt\ns3://bucket/x.tar\n",
    "https://host/sets/more/rest.txt": "last.tar\n",
    "https://host/sets/up.txt": "../x.tar",
    "https://host/sets/local.txt": "/etc/passwd",
    "https://host/sets/file.txt": "file:///etc/passwd",
    "https://host/sets/pipe.txt": "pipe:cat x.tar",
    "https://host/sets/circle.txt": "@circle.txt",
    "https://host/sets/empty.txt": "# nothing",
    "https://me:pw@host/sets/signed.txt?sig=1": "x.tar",
}


def read(url: str) -> bytes:
    return LISTS[url].encode()


def expanded(*names: str, allow_pipe: bool = False) -> list[str]:
    return expand(names, read, allow_pipe)


def test_braces_and_lists_within_lists():
    assert expanded("s3://b/{00..02}-{a,b}.tar") == [f"s3://b/0{n}-{c}.tar" for n in range(3) for c in "ab"]
    assert expanded("@https://host/sets/all.txt") == [
        "https://host/sets/train/0.tar",
        "https://host/sets/train/1.tar",
        "https://host/sets/more/last.tar",
        "s3://bucket/x.tar",
    ]
    assert expanded("@https://me:pw@host/sets/signed.txt?sig=1") == ["https://me:pw@host/sets/x.tar"]


def test_local_lists_are_relative_to_their_folder(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("a/0.tar", "a/1.tar", "b.tar"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "all.txt").write_text(f"a/*.tar\n{tmp_path}/b.tar\n")

    def from_disk(url: str) -> bytes:
        with open(url, "rb") as file:
            return file.read()

    found = expand([f"@{tmp_path}/all.txt"], from_disk)
    assert found == [f"{tmp_path}/a/0.tar", f"{tmp_path}/a/1.tar", f"{tmp_path}/b.tar"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("@https://host/sets/up.txt", "may not contain '..'"),
        ("@https://host/sets/local.txt", "may not name local files"),
        ("@https://host/sets/file.txt", "may not name local files"),
        ("@https://host/sets/pipe.txt", "may not hold commands"),
        ("@https://host/sets/circle.txt", "do they form a circle"),
        ("@https://host/sets/empty.txt", "the list of shards is empty"),
        ("pipe:cat x.tar", r"data\.allow_pipe"),
        ("pipe:cat 'x.tar", r"pipe:\? #\w{8}: .*data\.allow_pipe"),
        ("s3://b/{0..999999999}.tar", "expands to 1000000000 names"),
        ("s3://b/{0..99999}{0..99999}.tar", "expands to 10000000000 names"),
        ("s3://b/{0..2.tar", "unbalanced braces"),
        ("nowhere-*.tar", "no such shard"),
    ],
)
def test_what_is_refused(name, message):
    with pytest.raises(FetchError, match=message):
        expanded(name)


def test_a_list_may_not_hold_commands_even_where_the_configuration_may():
    assert expanded("pipe:cat {a,b}.tar", allow_pipe=True) == ["pipe:cat a.tar", "pipe:cat b.tar"]
    with pytest.raises(FetchError, match="may not hold commands"):
        expanded("@https://host/sets/pipe.txt", allow_pipe=True)


@pytest.mark.parametrize(
    ("name", "message"), [("pipe:cat 'secret.tar", "not a command: No closing quotation"), ("pipe: ", "no command")]
)
def test_what_is_no_command_is_one_line(name, message):
    with pytest.raises(FetchError, match=rf"pipe:\? #\w{{8}}: {message}") as caught:
        expanded("s3://b/a.tar", name, allow_pipe=True)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_credentials_and_queries_are_not_shown():
    assert masked("get https://me:p@ss@host/a.tar?sig=abc now") == "get https://***@host/a.tar?*** now"
    assert (
        masked("Max retries exceeded with url: /a.tar?token=abc (x)") == "Max retries exceeded with url: /a.tar?*** (x)"
    )
    assert shown("s3://bucket/a@b.tar") == "s3://bucket/a@b.tar"
    command = shown("pipe:/usr/bin/curl -H 'Authorization: abc' https://host/a.tar")
    assert command.startswith("pipe:curl #") and "abc" not in command


def test_joining():
    assert join("https://host/set/", "a.tar") == join("https://host/set", "a.tar") == "https://host/set/a.tar"
    assert join("https://host/set?sig=1", "a.tar") == "https://host/set/a.tar?sig=1"
    assert join("folder", "a.tar") == join("file:folder", "a.tar") == "folder/a.tar"


def test_what_leaves_the_machine_has_no_credentials(tmp_path):
    tasks = [
        "data.tasks.shapes.path=https://me:secret@host/set?sig=secret",
        "data.tasks.clips.shards=['pipe:curl -H secret https://host/a.tar', 's3://bucket/a.tar']",
    ]
    run = load_config(ROOT / "configs" / "demo.yaml", [*tasks, f"runs={tmp_path}"])
    assert dump_config(run).count("secret") == 3
    sent = dump_config(without_credentials(run))
    assert "secret" not in sent and "https://***@host/set?***" in sent and "s3://bucket/a.tar" in sent


def test_a_new_signature_is_the_same_run_and_so_is_another_place(tmp_path):
    def run(path: str):
        return load_config(ROOT / "configs" / "demo.yaml", [f"runs={tmp_path}", f"data.tasks.shapes.path={path}"])

    vocabulary = Vocabulary.full(Tokenizer.load())
    write_run_files(run("https://me:secret@host/set?sig=secret1"), vocabulary)
    (tmp_path / "demo" / "checkpoints" / "step_00000001").mkdir(parents=True)
    (tmp_path / "demo" / "checkpoints" / "step_00000001" / "manifest.json").write_text("{}")
    for place in ("https://me:secret@host/set?sig=secret2", "https://me:secret@host/other?sig=secret1", "/local/copy"):
        now = run(place)
        before = earlier_start(now, vocabulary)
        assert before is not None and told_changes(before, now, 1) == []

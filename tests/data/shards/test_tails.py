"""Tars as people make them: put behind one another, with links, with dots in names."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from data.shards import BadSample, ShardSet
from data.tasks.members import IMAGE_KEYS, member


def tar_of(path: Path, *members: tuple[str, bytes | str], kind: bytes = tarfile.SYMTYPE) -> Path:
    """Names with contents, or with the target of a link of this kind."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = kind, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def put_together(folder: Path, *parts: bytes) -> ShardSet:
    (folder / "train-000000.tar").write_bytes(b"".join(parts))
    return ShardSet.open(folder, "train")


def one(folder: Path, name: str) -> bytes:
    return tar_of(folder / "part", (f"{name}.txt", name.encode())).read_bytes()


def shortened(tar: bytes) -> bytes:
    """With one end mark of two blocks, and no filling up to a record."""
    content = tar.rstrip(b"\0")
    return content + bytes(-len(content) % 512) + bytes(1024)


@pytest.mark.parametrize("end", [bytes, shortened])
def test_tars_put_behind_one_another_are_read(end: Callable[[bytes], bytes], tmp_path):
    shards = put_together(tmp_path, *(end(one(tmp_path, name)) for name in "abc"))
    assert [shards.read(0, index)["txt"] for index in range(len(shards))] == [b"a", b"b", b"c"]


def test_padding_behind_the_end_is_nothing(tmp_path):
    shards = put_together(tmp_path, one(tmp_path, "a"), bytes(10240))
    assert len(shards) == 1 and not shards.faults


def test_what_is_no_tar_behind_the_end_is_a_fault_with_its_size(tmp_path):
    shards = put_together(tmp_path, one(tmp_path, "a"), b"x" * 2048)
    assert len(shards) == 1
    assert "2048 bytes follow the end mark" in shards.faults[0] and "no tar" in shards.faults[0]


def test_a_hard_link_inside_the_shard_is_read(tmp_path):
    members = (("0.txt", b"zero"), ("1.cls", b"3"), ("1.txt", "0.txt"))
    shards = put_together(tmp_path, tar_of(tmp_path / "part", *members, kind=tarfile.LNKTYPE).read_bytes())
    assert [shards.read(0, index)["txt"] for index in range(2)] == [b"zero"] * 2


@pytest.mark.parametrize(
    ("kind", "target", "said"),
    [
        (tarfile.SYMTYPE, "../images/1.jpg", r"a symbolic link to '../images/1.jpg': pack with tar -h"),
        (tarfile.LNKTYPE, "elsewhere.jpg", r"a hard link to 'elsewhere.jpg'.*pack with tar --hard-dereference"),
        (tarfile.FIFOTYPE, "", "a named pipe: pack regular files alone"),
        (tarfile.CHRTYPE, "", "a character device: pack regular files alone"),
    ],
)
def test_other_links_are_named_with_the_remedy(kind, target, said, tmp_path):
    part = tar_of(tmp_path / "part", ("1.txt", b"a"), ("1.jpg", target), ("2.txt", b"b"), kind=kind)
    shards = put_together(tmp_path, part.read_bytes())
    with pytest.raises(BadSample, match=said):
        shards.read(0, 0)
    assert shards.read(0, 1)["txt"] == b"b"


def test_an_extension_begins_at_the_first_dot_and_the_message_says_so():
    with pytest.raises(BadSample) as caught:
        member({"__key__": "a/s1", "input.jpg": b"", "outputs.txt": b""}, IMAGE_KEYS)
    message = str(caught.value)
    assert (
        "An extension begins at the first dot of a name: s1.input.jpg is member 'input.jpg' of sample 's1'" in message
    )
    with pytest.raises(BadSample, match=r"found txt$"):
        member({"__key__": "s1", "txt": b""}, IMAGE_KEYS)
    with pytest.raises(BadSample, match=r"found nothing$"):
        member({"__key__": "s1"}, IMAGE_KEYS)

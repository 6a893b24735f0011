"""Samples of plain files are taken apart by their headers alone: the same ones that webdataset's parser gives."""

from __future__ import annotations

import errno
import io
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.tariterators import group_by_keys, tar_file_iterator

from data.shards import BadSample, ShardSet
from data.shards.members import Damage, read_sample

extensions = st.sampled_from(("txt", "jpg", "JPG", "seg.png", "json", "cls"))
keys = st.sampled_from(("a", "b/c", "ü", "long" * 40, "__meta__", "d/__meta__"))
kinds = st.sampled_from((tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.REGTYPE, tarfile.DIRTYPE))


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(keys, st.lists(st.tuples(extensions, st.binary(max_size=600), kinds), max_size=3)), max_size=5),
    st.sampled_from((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)),
)
def test_samples_are_those_of_webdataset(samples, form):
    if form == tarfile.USTAR_FORMAT:  # it has no place for such names
        samples = [(key, members) for key, members in samples if len(key) < 90]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train-000000.tar"
        with tarfile.open(path, "w", format=form) as tar:
            tar.addfile(_member("first.txt", 4, tarfile.REGTYPE), io.BytesIO(b"here"))
            for number, (key, members) in enumerate(samples):
                for extension, content, kind in members:
                    size = len(content) if kind in (tarfile.REGTYPE, tarfile.AREGTYPE) else 0
                    tar.addfile(_member(f"{number}{key}.{extension}", size, kind), io.BytesIO(content))
        shards = ShardSet.open(folder, "train")
        ours = []
        for index in range(len(shards)):
            try:
                ours.append(shards.read(0, index))
            except Exception as error:
                ours.append(str(error))
        with path.open("rb") as file:
            theirs = []
            try:
                for sample in group_by_keys({**m, "__url__": str(path)} for m in tar_file_iterator(file)):
                    theirs.append(sample)
            except ValueError:  # one name twice
                theirs.append(None)
        # webdataset stops at a name that comes twice.
        assert len(ours) == len(theirs) or None in theirs
        for sample, expected in zip(ours, theirs, strict=False):
            if expected is None:
                assert isinstance(sample, str) and "duplicate" in sample
            else:
                assert {k: v for k, v in sample.items() if k != "__url__"} == {
                    k: v for k, v in expected.items() if k != "__url__"
                }


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_members_of_a_claimed_size_are_refused(tmp_path, form):
    """Sparse files: a kilobyte that would be read as a gigabyte."""
    claimed = 1 << 30
    member = tarfile.TarInfo("a.txt")
    if form == "gnu":
        head = bytearray(member.tobuf(tarfile.GNU_FORMAT))
        head[124:136], head[156:157] = b"%011o\0" % 512, tarfile.GNUTYPE_SPARSE
        head[386:398], head[398:410], head[483:495] = (b"%011o\0" % n for n in (claimed - 512, 512, claimed))
        head[148:156] = b" " * 8
        head[148:156] = b"%06o\0 " % sum(head)
        content = bytes(head) + bytes(512)
    else:
        member.size = 512
        member.pax_headers = {"GNU.sparse.map": f"{claimed - 512},512", "GNU.sparse.size": str(claimed)}
        content = member.tobuf(tarfile.PAX_FORMAT) + bytes(512)
    path = tmp_path / "train-000000.tar"
    path.write_bytes(content + bytes(1024))
    with pytest.raises(BadSample, match="is sparse"):
        ShardSet.from_urls([str(path)]).read(0, 0)


def test_a_size_beside_the_header_is_refused():
    member = tarfile.TarInfo("a.txt")
    member.size, member.pax_headers = 512, {"size": str(1 << 30)}
    content = member.tobuf(tarfile.PAX_FORMAT) + bytes(512)
    with pytest.raises(Damage, match=r"'a\.txt' of 1073741824 bytes does not fit"):
        read_sample(io.BytesIO(content), 0, len(content), "u")


def test_a_header_may_not_claim_more_than_the_sample_has():
    content = _member("a.txt", 1 << 33, tarfile.REGTYPE).tobuf(tarfile.GNU_FORMAT) + bytes(512)
    with pytest.raises(Damage, match=r"'a\.txt' of 8589934592 bytes does not fit"):
        read_sample(io.BytesIO(content), 0, len(content), "u")


def test_a_range_that_ends_before_the_member_of_a_long_name():
    content = _member("long" * 40 + ".txt", 4, tarfile.REGTYPE).tobuf(tarfile.GNU_FORMAT)[:1024]
    with pytest.raises(Damage, match="empty header"):
        read_sample(io.BytesIO(content), 0, len(content), "u")


def test_a_read_error_keeps_its_words():
    class Failing(io.BytesIO):
        def seek(self, *place):
            if self.tell() and place == (0,):  # the second time
                raise OSError(errno.EIO, "Input/output error")
            return super().seek(*place)

    content = _member("long" * 40 + ".txt", 0, tarfile.REGTYPE).tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(OSError, match="Input/output error"):
        read_sample(Failing(content), 0, len(content), "u")


def test_members_of_webdatasets_own_are_passed_over():
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name in ("a.txt", "__meta__/a.txt", "__c__"):
            tar.addfile(_member(name, 2, tarfile.REGTYPE), io.BytesIO(b"hi"))
    sample = read_sample(content, 0, 3 * 1024, "u")
    assert sample == {"__key__": "a", "__url__": "u", "txt": b"hi"}


def _member(name: str, size: int, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member


def test_reads_may_bring_less_than_was_asked_for(tmp_path):
    class Dribbling(io.BytesIO):
        def read(self, size=-1):
            return super().read(min(size, 100))

    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        tar.addfile(_member("a.txt", 700, tarfile.REGTYPE), io.BytesIO(b"x" * 700))
    whole = content.getvalue()[:1536]
    sample = read_sample(Dribbling(b"before" + whole), 6, len(whole), "u")
    assert sample == {"__key__": "a", "__url__": "u", "txt": b"x" * 700}
    with pytest.raises(Damage, match="ends inside the sample"):
        read_sample(Dribbling(whole[:1500]), 0, len(whole), "u")

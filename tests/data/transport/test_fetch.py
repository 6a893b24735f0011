"""Downloads against a server that fails in every way: each ends whole or in one line, and nothing hangs."""

from __future__ import annotations

import dataclasses
import io
import sys
import time

import pytest

from data.transport import FetchError, FetchOptions, read_small
from data.transport.fetch import Known, download
from tests.helpers.limits import within
from tests.helpers.shard_server import Deed, serving

QUICK = FetchOptions(attempts=3, connect_s=5.0, stall_s=5.0, backoff_s=0.01, max_backoff_s=0.05)
IMPATIENT = dataclasses.replace(QUICK, stall_s=0.4)  # for what is too slow in any case; busy machines are slow, too
CONTENT = bytes(range(256)) * 800  # 204,800 bytes
LIMIT = 1 << 20


@pytest.fixture(autouse=True)
def time_limit():
    with within(40):
        yield


@pytest.fixture
def server():
    with serving() as server:
        server.files["/a.tar"] = CONTENT
        yield server


def fetched(url, limit=LIMIT, options=QUICK) -> bytes:
    file = io.BytesIO()
    download(url, file, limit, options)
    return file.getvalue()


def test_a_plain_download(server):
    assert fetched(f"{server.url}/a.tar") == CONTENT
    assert server.seen == [("/a.tar", None, 200)]


@pytest.mark.parametrize("status", [500, 502, 503, 429, 408])
def test_errors_that_pass_are_waited_out(server, status):
    server.deeds["/a.tar"] = [Deed(status=status), Deed(status=status)]
    assert fetched(f"{server.url}/a.tar") == CONTENT
    assert server.requests("/a.tar") == 3


def test_errors_that_stay_end_in_one_line(server):
    server.deeds["/a.tar"] = [Deed(status=500)] * 9
    with pytest.raises(FetchError, match=r"/a\.tar: HTTP 500 \(given up after 3 attempts\)"):
        fetched(f"{server.url}/a.tar")
    assert server.requests("/a.tar") == 3


@pytest.mark.parametrize("status", [403, 410])
def test_refusals_are_not_asked_again(server, status):
    server.deeds["/a.tar"] = [Deed(status=status)] * 3
    with pytest.raises(FetchError, match=f"HTTP {status}"):
        fetched(f"{server.url}/a.tar")
    assert server.requests("/a.tar") == 1
    with pytest.raises(FetchError, match="HTTP 404"):
        fetched(f"{server.url}/b.tar")


def test_the_servers_own_pause_is_kept(server):
    server.deeds["/a.tar"] = [Deed(status=503, headers={"Retry-After": "1"})]
    before = time.monotonic()
    assert fetched(f"{server.url}/a.tar") == CONTENT
    assert time.monotonic() - before >= 1.0


def test_a_cut_body_is_continued_where_it_ended(server):
    server.deeds["/a.tar"] = [Deed(cut=100_000), Deed(cut=70_000)]
    assert fetched(f"{server.url}/a.tar") == CONTENT
    assert server.seen == [
        ("/a.tar", None, 200),
        ("/a.tar", "bytes=100000-", 206),
        ("/a.tar", "bytes=170000-", 206),
    ]


def test_progress_gives_new_attempts(server):
    server.deeds["/a.tar"] = [Deed(cut=66_000)] * 3 + [Deed(cut=1000)]  # five requests, three attempts
    assert fetched(f"{server.url}/a.tar") == CONTENT


def test_a_new_version_is_not_joined_to_the_old():
    with serving() as server:
        server.files["/a.tar"] = CONTENT
        server.deeds["/a.tar"] = [Deed(cut=100_000)]
        file = io.BytesIO()

        def note(known: Known, size: int) -> None:
            if size >= 100_000:
                server.files["/a.tar"] = CONTENT[::-1]

        download(f"{server.url}/a.tar", file, LIMIT, QUICK, note=note)
        assert file.getvalue() == CONTENT[::-1]
        assert [status for _, _, status in server.seen] == [200, 200]


@pytest.mark.parametrize(("changed", "status"), [(CONTENT[::-1], 206), (CONTENT[:1000], 416), (CONTENT[:150_000], 206)])
def test_a_new_version_is_asked_for_anew_where_the_server_joins_it_to_the_old(changed, status):
    with serving(if_ranges=False) as server:
        server.files["/a.tar"] = changed
        file, noted = io.BytesIO(CONTENT[:100_000]), []
        known = Known('"old"', len(CONTENT))
        download(f"{server.url}/a.tar", file, LIMIT, QUICK, known, lambda *version: noted.append(version))
        assert file.getvalue() == changed and noted[0] == (Known(), 0)
        assert [status for _, _, status in server.seen] == [status, 200]


def test_what_is_whole_is_not_asked_for(server):
    file = io.BytesIO(b"x" * len(CONTENT))
    known = Known('"version"', len(CONTENT))
    download(f"{server.url}/a.tar", file, LIMIT, QUICK, known)
    assert file.getvalue() == b"x" * len(CONTENT) and not server.seen
    with pytest.raises(FetchError, match="204800 bytes, more than the limit of 1000"):
        download(f"{server.url}/a.tar", file, 1000, QUICK, known)


@pytest.mark.parametrize("options", [{"ranges": False}, {"etags": False}])
def test_without_ranges_or_versions_it_starts_anew(options):
    with serving(**options) as server:
        server.files["/a.tar"] = CONTENT
        server.deeds["/a.tar"] = [Deed(cut=100_000)]
        assert fetched(f"{server.url}/a.tar") == CONTENT
        assert [status for _, _, status in server.seen] == [200, 200]


def test_a_length_that_is_too_long_never_counts_as_whole(server):
    server.deeds["/a.tar"] = [Deed(length=len(CONTENT) + 500)] * 9
    with pytest.raises(FetchError, match=r"given up after 3 attempts"):
        fetched(f"{server.url}/a.tar")


def test_a_length_that_is_too_short_is_taken_as_it_is_told(server):
    """The connection ends there; that it is no whole shard shows when it is looked at."""
    server.deeds["/a.tar"] = [Deed(length=1000)]
    assert fetched(f"{server.url}/a.tar") == CONTENT[:1000]


def test_limits_hold_for_what_is_told_and_for_what_comes(server):
    with pytest.raises(FetchError, match="204800 bytes, more than the limit of 1000"):
        fetched(f"{server.url}/a.tar", limit=1000)
    with pytest.raises(FetchError, match=f"{2 << 40} bytes, more than the limit"):
        server.deeds["/a.tar"] = [Deed(length=2 << 40)]
        fetched(f"{server.url}/a.tar")


def test_a_server_that_never_answers(server):
    server.deeds["/a.tar"] = [Deed(silent=True)] * 9
    before = time.monotonic()
    with pytest.raises(FetchError, match=r"imed? ?out.*given up after 3 attempts"):
        fetched(f"{server.url}/a.tar", options=IMPATIENT)
    assert time.monotonic() - before < 10


def test_a_server_that_drips(server):
    server.deeds["/a.tar"] = [Deed(pause=0.01)] * 9  # 100 bytes a second: never silent, never done
    with pytest.raises(FetchError, match=r"too slow \(given up after 3 attempts\)"):
        fetched(f"{server.url}/a.tar", options=IMPATIENT)


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999/x", "http://[::1/x", "http:///x", "https://a b/x"])
def test_what_is_no_url_is_not_tried_again(url):
    with pytest.raises(FetchError) as error:
        fetched(url)
    assert "given up" not in str(error.value) and str(error.value).startswith(url)


def test_a_server_that_is_not_there():
    with pytest.raises(FetchError, match="given up after 3 attempts"):
        fetched("http://127.0.0.1:9/a.tar")


def test_redirects(server):
    server.deeds["/old.tar"] = [Deed(status=302, location="/a.tar")]
    assert fetched(f"{server.url}/old.tar") == CONTENT
    server.deeds["/round.tar"] = [Deed(status=301, location="/round.tar")] * 20
    with pytest.raises(FetchError, match="more than 5 redirects"):
        fetched(f"{server.url}/round.tar")
    server.deeds["/evil.tar"] = [Deed(status=302, location="file:///etc/passwd")]
    with pytest.raises(FetchError, match="neither http nor https"):
        fetched(f"{server.url}/evil.tar")


def test_credentials_are_sent_and_never_shown(server):
    url = server.url.replace("http://", "http://me:secret@")
    assert fetched(f"{url}/a.tar") == CONTENT
    assert server.authorizations[0] is not None and server.authorizations[0].startswith("Basic ")
    server.deeds["/a.tar"] = [Deed(status=500)] * 3 + [Deed(silent=True)] * 3
    for _ in range(2):
        with pytest.raises(FetchError) as caught:
            fetched(f"{url}/a.tar?signature=secret", options=IMPATIENT)
        assert "secret" not in str(caught.value) and "/a.tar" in str(caught.value)
    with pytest.raises(FetchError) as caught:
        fetched("http://me:secret@127.0.0.1:9/a.tar?signature=secret")
    assert "secret" not in str(caught.value)


def test_stores_that_fsspec_knows():
    import fsspec

    store = fsspec.filesystem("memory")
    store.pipe_file("/bucket/a.tar", CONTENT)
    assert fetched("memory://bucket/a.tar") == CONTENT
    with pytest.raises(FetchError, match="FileNotFoundError"):
        fetched("memory://bucket/b.tar")
    with pytest.raises(FetchError, match="more than the limit"):
        fetched("memory://bucket/a.tar", limit=10)
    with pytest.raises(FetchError, match=r"unknown protocol nonsense://"):
        fetched("nonsense://bucket/a.tar")
    with pytest.raises(FetchError, match=r"needs a package that is not installed: .*gcsfs"):
        fetched("gs://bucket/a.tar")  # gcsfs is not among our dependencies


def test_missing_credentials_are_told_at_once(monkeypatch, tmp_path):
    pytest.importorskip("s3fs", reason="s3fs is not installed: `make setup` brings it")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(FetchError, match=r"a\.tar: NoCredentialsError: [^(]*$"):
        fetched("s3://bucket/a.tar")


def test_a_store_is_continued_where_it_ended():
    import fsspec

    store = fsspec.filesystem("memory")
    store.pipe_file("/bucket/c.tar", CONTENT)
    version = str(store.ukey("/bucket/c.tar"))
    file = io.BytesIO(b"x" * 1000)  # what is there is kept, so a mark shows that it was
    download("memory://bucket/c.tar", file, LIMIT, QUICK, Known(version, len(CONTENT)))
    assert file.getvalue() == b"x" * 1000 + CONTENT[1000:]
    file = io.BytesIO(b"x" * 1000)
    download("memory://bucket/c.tar", file, LIMIT, QUICK, Known("another", len(CONTENT)))
    assert file.getvalue() == CONTENT


def test_commands(tmp_path):
    (tmp_path / "a.tar").write_bytes(CONTENT)
    assert fetched(f"pipe:cat {tmp_path}/a.tar") == CONTENT
    marker = tmp_path / "shell"
    fetched(f"pipe:echo a; touch {marker}")  # words, not a shell: `echo` prints them all
    assert not marker.exists()
    with pytest.raises(FetchError, match="sends more than"):
        fetched("pipe:cat /dev/zero", limit=1000)
    with pytest.raises(FetchError, match=r"pipe:cat #\w{8}: exit code 1: cat: .*No such file"):
        fetched(f"pipe:cat {tmp_path}/b.tar")
    with pytest.raises(FetchError, match="cannot be started"):
        fetched("pipe:no-such-program-here")
    before = time.monotonic()
    with pytest.raises(FetchError, match=r"nothing for 0.4 s"):
        fetched("pipe:sleep 60", options=IMPATIENT)
    assert time.monotonic() - before < 10


@pytest.mark.parametrize(
    "complaint",
    [f"https://me:{'secret' * 9}@host/a.tar {'x ' * 130}", f"https://host/a.tar?signature={'secret' * 900}"],
)
def test_what_a_command_complains_of_is_masked_before_it_is_cut(complaint):
    complaint = f"{complaint} the end"
    with pytest.raises(FetchError, match=r"exit code 1: .*the end \(given up") as caught:
        fetched(f"pipe:{sys.executable} -c 'import sys; sys.exit(\"{complaint}\")'")
    assert "secret" not in str(caught.value) and len(str(caught.value)) < 400


def test_small_files_have_limits(server, tmp_path):
    assert read_small(f"{server.url}/a.tar", LIMIT, QUICK) == CONTENT
    (tmp_path / "x").write_bytes(CONTENT)
    assert read_small(str(tmp_path / "x"), LIMIT) == CONTENT
    for url in (f"{server.url}/a.tar", str(tmp_path / "x")):
        with pytest.raises(FetchError, match="more than"):
            read_small(url, 1000, QUICK)

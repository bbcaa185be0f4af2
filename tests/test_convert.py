"""From an official address to safetensors: downloads that resume and are verified, and the conversion."""

import gzip
import hashlib
import http.server
import io
import itertools
import threading
import urllib.request
from types import MappingProxyType

import numpy as np
import pytest
import safetensors.numpy
import torch
from mains import main

from ld3_jax.networks import files
from ld3_jax.pretrained import download

CONTENT = safetensors.numpy.save({"w": np.arange(1_280_000, dtype=np.float32)})  # five of the chunks that are read
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server():
    """A server that understands ranges, writes down what it was asked for, and breaks off when told to."""

    class Handler(http.server.BaseHTTPRequestHandler):
        content, asked, cuts, ranges, length, shift = CONTENT, [], [], True, True, 0
        more = MappingProxyType({})  # headers

        def do_GET(self):
            asked = self.headers["Range"]
            self.asked.append(asked)
            same = self.headers["If-Range"] in (None, self.more.get("ETag"))
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.ranges and same else 0
            if self.path != "/weights":
                self.send_error(404)
                return
            if start >= len(self.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(self.content)}")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                start += self.shift
                self.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
            if self.length:
                self.send_header("Content-Length", str(len(self.content) - start))
            for name, value in self.more.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(self.content[start : self.cuts.pop(0) if self.cuts else None])

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        Handler.url = f"http://127.0.0.1:{running.server_port}/weights"
        yield Handler
        running.shutdown()
        thread.join()


def names(folder):
    """The files except locks, which some versions of filelock leave."""
    return [path.name for path in folder.iterdir() if path.suffix != ".lock"]


def test_a_download_is_whole_and_tells_its_progress(server, tmp_path):
    calls = []
    download.download(server.url, DIGEST, tmp_path / "new" / "weights", lambda *call: calls.append(call))
    assert (tmp_path / "new" / "weights").read_bytes() == CONTENT
    assert names(tmp_path / "new") == ["weights"]
    assert calls[-1] == (len(CONTENT), len(CONTENT))
    assert all(a[0] < b[0] for a, b in itertools.pairwise(calls))


def test_a_download_goes_on_where_it_broke_off(server, tmp_path):
    server.cuts = [1_500_000, 4_000_000]
    path = tmp_path / "weights"
    for kept in ("1,500,000", "4,000,000"):
        with pytest.raises(
            ConnectionError, match=rf"broken off.*continues from the {kept} bytes in .*put it at .*weights"
        ):
            download.download(server.url, DIGEST, path)
        assert not path.exists()
    download.download(server.url, DIGEST, path)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1500000-", "bytes=4000000-"]


def test_of_two_that_want_a_file_one_waits_for_the_other(server, tmp_path):
    path, done = tmp_path / "weights", []
    other = threading.Thread(target=lambda: done.append(download.download(server.url, None, path)))

    def meanwhile(*_):
        if not done and not other.is_alive():
            other.start()
            other.join(0.2)

    download.download(server.url, None, path, meanwhile)
    other.join()
    assert done == [None]
    assert path.read_bytes() == CONTENT
    assert server.asked == [None]
    assert names(tmp_path) == ["weights"]


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.ranges = False
    (tmp_path / "weights.part").write_bytes(b"old" * 100)
    download.download(server.url, DIGEST, tmp_path / "weights")
    assert (tmp_path / "weights").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("server_is", "part", "version", "asked"),
    [
        ({"length": False}, b"", "", [None]),
        ({"length": False, "more": {"ETag": '"1"'}}, CONTENT[:1000], '"1"', ["bytes=1000-"]),
        ({"more": {"Last-Modified": "today"}, "cuts": [0]}, b"", "", [None]),
        ({}, CONTENT[:1000], "", [None]),  # nothing says that it is the same file
        ({"more": {"ETag": '"2"'}}, b"other" * 100, '"1"', ["bytes=500-"]),  # answers with the whole
        ({"more": {"ETag": '"1"'}, "shift": 10}, CONTENT[:1000], '"1"', ["bytes=1000-", None]),
        ({"more": {"ETag": '"1"'}}, CONTENT + b"more", '"1"', [f"bytes={len(CONTENT) + 4}-", None]),
    ],
    ids=["no length", "no length, continues", "cut", "no version", "changed", "other bytes", "too long"],
)
def test_without_a_hash_only_the_whole_of_one_file_is_taken(server, server_is, part, version, asked, tmp_path):
    for name, value in server_is.items():
        setattr(server, name, value)
    if part:
        (tmp_path / "weights.part").write_bytes(part)
        (tmp_path / "weights.part.version").write_text(version)
    if server.cuts:
        with pytest.raises(ConnectionError, match="broken off: 0 of"):
            download.download(server.url, None, tmp_path / "weights")
        assert (tmp_path / "weights.part.version").read_text() == "today"
    else:
        download.download(server.url, None, tmp_path / "weights")
        assert (tmp_path / "weights").read_bytes() == CONTENT
        assert names(tmp_path) == ["weights"]
    assert server.asked == asked


@pytest.mark.parametrize(
    ("server_is", "error", "message"),
    [
        (
            {"content": b"<html>sign in</html>", "more": {"Content-Type": "text/html"}},
            ConnectionError,
            "a web page instead",
        ),
        ({"content": b"<html>sign in</html>"}, ValueError, "begins with b'<html>.*a web page.*; deleted"),
        ({"more": {"Content-Encoding": "gzip"}}, ConnectionError, "answers with gzip instead of the file"),
        ({"content": gzip.compress(b"weights")}, ValueError, r"\(gzip\); deleted"),
        ({"length": False, "cuts": [1000]}, ValueError, "cut short or damaged.*; deleted"),
        ({"content": b""}, ConnectionError, "416"),
    ],
)
def test_without_a_hash_what_is_no_file_of_weights_is_refused(server, server_is, error, message, tmp_path):
    for name, value in server_is.items():
        setattr(server, name, value)
    with pytest.raises(error, match=message):
        download.download(server.url, None, tmp_path / "weights")
    assert not names(tmp_path)


def test_a_redirect_away_from_https_is_not_followed():
    request = urllib.request.Request("https://a/weights")
    with pytest.raises(ConnectionError, match="redirects from https to http://b/weights"):
        download._Redirects().redirect_request(request, None, 302, "", {}, "http://b/weights")
    assert download._Redirects().redirect_request(request, None, 302, "", {}, "https://b/weights").host == "b"


def test_a_run_killed_after_the_last_byte_needs_no_more(server, tmp_path):
    (tmp_path / "weights.part").write_bytes(CONTENT)
    download.download(server.url, DIGEST, tmp_path / "weights")
    assert (tmp_path / "weights").read_bytes() == CONTENT


def test_a_file_with_another_hash_is_deleted(server, tmp_path):
    with pytest.raises(ValueError, match=rf"SHA-256 is {DIGEST} where 00.* is expected; deleted"):
        download.download(server.url, "0" * 64, tmp_path / "weights")
    assert not names(tmp_path)


def test_without_a_server_nothing_is_lost_and_the_error_says_what_to_do(server, tmp_path):
    (tmp_path / "weights.part").write_bytes(CONTENT[:1000])
    for url, reason in (("http://127.0.0.1:1/weights", "refused"), (f"{server.url}x", "404")):
        message = rf"cannot download {url} .*{reason}.*1,000 bytes in .*weights\.part; or get .* put it at .*weights"
        with pytest.raises(ConnectionError, match=message):
            download.download(url, DIGEST, tmp_path / "weights")
        assert (tmp_path / "weights.part").read_bytes() == CONTENT[:1000]


def test_an_official_file_is_downloaded_once(server, tmp_path, monkeypatch):
    monkeypatch.setitem(download.SOURCES, "weights", download.Source(server.url, DIGEST))
    calls = []
    for _ in range(2):
        fetched = download.fetch(tmp_path / "weights", lambda *call: calls.append(call))
        assert fetched.read_bytes() == CONTENT
    assert len(server.asked) == 1
    assert calls[-1] == ("weights", len(CONTENT), len(CONTENT))
    calls = []
    download.fetch(tmp_path / "again" / "weights", lambda *call: calls.append(call))
    assert calls[-1] == ("weights", len(CONTENT), len(CONTENT))
    with pytest.raises(
        FileNotFoundError, match=r"no file .*other; files with these names .*edm-cifar10-32x32-uncond-vp\.pkl"
    ):
        download.fetch(tmp_path / "other")


def test_an_official_checkpoint_is_downloaded_and_converted_and_the_original_named(server, tmp_path, monkeypatch):
    source, out = tmp_path / "model.ckpt", tmp_path / "model.safetensors"
    torch.save({"state_dict": {"w": torch.arange(6.0).reshape(2, 3)}}, content := io.BytesIO())
    server.content = content.getvalue()
    monkeypatch.setitem(download.SOURCES, "model.ckpt", download.Source(server.url))
    result = main("convert", f"--in={source}", "--from=torch")
    assert f"{out}: 1 arrays, 6 numbers" in result.stdout
    assert "model.ckpt % 100/100" in result.stderr
    np.testing.assert_array_equal(files.read(out).state["w"], np.arange(6.0).reshape(2, 3))
    assert files.sha256(source).encode() in out.read_bytes()
    monkeypatch.undo()
    refused = main("convert", f"--in={source}", "--from=edm", check=False)
    assert refused.stderr.endswith("model.ckpt is of kind 'torch', not 'edm'\n")


def test_a_file_that_passes_for_an_official_one_is_refused(tmp_path):
    torch.save({"w": torch.zeros(2)}, tmp_path / "sd-v1-4.ckpt")
    result = main("convert", f"--in={tmp_path / 'sd-v1-4.ckpt'}", check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert "sd-v1-4.ckpt is not the official file: its SHA-256 is " in result.stderr
    assert not (tmp_path / "sd-v1-4.safetensors").exists()

"""Where the published weights are, and a download that resumes and is verified."""

import http.client
import itertools
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import filelock

from ld3_jax import disk
from ld3_jax.networks import files

_CHUNK = 1 << 20
_TIMEOUT_S = 30.0
_LOOKED_AT = 10_000  # the most files of a folder to look at when naming its weights


class Source(NamedTuple):
    """An address and the SHA-256 of its file, if it is publicly known."""

    url: str
    sha256: str | None = None


SOURCES: dict[str, Source] = {}  # by the name of the file; open to additions


def read(file: str, on_progress: Callable[[str, int, int], None]) -> files.Checkpoint:
    """The arrays in a file of weights, which is downloaded if an official one is missing; see `fetch`, `files.read`."""
    if not file:
        raise ValueError("network.file must name the file of the weights")
    return files.read(fetch(Path(file), on_progress))


def fetch(path: Path, on_progress: Callable[[str, int, int], None] = lambda label, done, total: None) -> Path:
    """A file of weights: the existing one or, if its name is in SOURCES, a download.

    Args:
        path: where the file is or will be.
        on_progress: called with the file's name, the bytes so far and the expected bytes.

    Raises:
        ValueError: if it is a folder; the message names the files of weights in it.
        FileNotFoundError: if there is no such file, and its name is not in SOURCES.
        ConnectionError, ValueError: see `download`.
    """
    if path.is_file():
        return path
    if path.is_dir():
        found = itertools.islice(itertools.chain(path.glob("*"), path.glob("*/*")), _LOOKED_AT)
        within = sorted(str(file) for file in found if file.name.endswith(files.SUFFIXES))[:10]
        raise ValueError(f"{path} is a folder; give the file of the weights" + (f", one of {within}" if within else ""))
    if path.name not in SOURCES:
        raise FileNotFoundError(f"no file {path}; files with these names are downloaded: {', '.join(SOURCES)}")
    download(*SOURCES[path.name], path, lambda done, total: on_progress(path.name, done, total))
    return path


def download(
    url: str, sha256: str | None, path: Path, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Download a file; it continues from what an earlier try left in `<path>.part`.

    If several processes need the file, one downloads it and the others wait.

    Args:
        url: the address.
        sha256: SHA-256 of the whole file, or None if unknown; then it must be readable as a file of weights, and an
            earlier try continues only if the server says that its file has not changed.
        path: where the file is put once it is complete and verified.
        on_progress: called with the bytes so far and the expected bytes, if the server says them.

    Raises:
        ConnectionError: if the address cannot be reached, refuses, or breaks off; the message says how to continue.
        ValueError: if the file has another SHA-256 or holds no weights; then it is deleted.
    """
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{path}.lock"):
        if path.is_file():  # another process had the lock and downloaded it
            return
        try:
            _receive(url, sha256, part, on_progress)
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            here = part.stat().st_size if part.is_file() else 0
            raise ConnectionError(
                f"cannot download {url} ({error}). The same command continues from the {here:,} bytes in {part}; "
                f"or get the file in another way and put it at {path}"
            ) from error
        try:
            if sha256 is None:
                files.read(part)
            elif (digest := files.sha256(part)) != sha256:
                raise ValueError(f"its SHA-256 is {digest} where {sha256} is expected")
        except ValueError as error:
            part.unlink()
            raise ValueError(f"{url}: {error}; deleted") from error
        part.replace(path)


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if req.type == "https" and not newurl.startswith("https:"):
            raise ConnectionError(f"redirects from https to {newurl:.200}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _receive(url: str, sha256: str | None, part: Path, on_progress: Callable[[int, int], None]) -> None:
    """Bring the partial file to its full length."""
    note = part.with_name(f"{part.name}.version")  # which version of the file, by ETag or date, the part is of
    version = note.read_text() if note.is_file() else ""
    here = part.stat().st_size if part.is_file() and (sha256 or version) else 0
    headers = {"Range": f"bytes={here}-", "If-Range": version} if here else {}
    request = urllib.request.Request(url, headers={name: value for name, value in headers.items() if value})
    try:
        response = urllib.request.build_opener(_Redirects).open(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        response = error
    with response:
        given, sent = response.headers, response.headers["Content-Range"] or ""
        if here and response.status == 416 and sent == f"bytes */{here}":
            return note.unlink(missing_ok=True)  # an earlier run was killed after the last byte
        now, span = given["ETag"] or given["Last-Modified"] or "", re.fullmatch(rf"bytes {here}-\d+/(\d+)", sent)
        resumed = span if response.status == 206 and now == (version or now) else None
        if not resumed and response.status != 200:  # other bytes, another version, or too many here
            if not here:
                raise ConnectionError(f"answers with status {response.status} {sent:.80}")
            part.unlink()
            return _receive(url, sha256, part, on_progress)
        if given.get_content_type() == "text/html" or given["Content-Encoding"] not in (None, "identity"):
            raise ConnectionError(f"answers with {given['Content-Encoding'] or 'a web page'} instead of the file")
        here, total = (here, int(resumed[1])) if resumed else (0, response.length)
        note.write_text(now)
        with part.open("ab" if resumed else "wb") as file:
            while chunk := response.read(_CHUNK):
                with disk.naming(part):
                    file.write(chunk)
                here += len(chunk)
                if total:
                    on_progress(here, total)
    if total is not None and here != total:
        raise ConnectionError(f"broken off: {here:,} of {total:,} bytes are here")
    note.unlink(missing_ok=True)

"""Kaggle on loopback for the real kagglehub client: versions of sets, credentials, storage, and faults on demand.

    with kaggle_server() as kaggle:
        kaggle.add("owner/name", 1, content_of_a_zip)
        subprocess.run([...], env=os.environ | kaggle.environment(tmp_path))

The client knows addresses on fixed ports only, so this server is the proxy of the one called http://localhost.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import json
import re
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

TOKEN = "loopback-token"
#: Kinds of fault that `Kaggle.fail` knows besides a status code.
DROP, WRONG_BYTES = "drop", "wrong bytes"
_API = "/api/v1/datasets.DatasetApiService"


class Kaggle:
    """What is on the server, and what was asked of it.

    `requests` lists (method, path, Range header) in order; `bytes_sent` counts the bytes of archives given out.
    """

    def __init__(self) -> None:
        self.archives: dict[tuple[str, int], bytes] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.faults: list[tuple[str, int | str]] = []
        self.needs_token = False
        self.ignores_range = False
        self.publishes_checksum = True
        self.bytes_sent = 0
        self.address = ""

    def add(self, handle: str, version: int, archive: bytes) -> None:
        """Put a version of a set there."""
        self.archives[handle, version] = archive

    def fail(self, pattern: str, kind: int | str, times: int = 1) -> None:
        """Let the next requests go wrong whose path, a space and the Range header hold a match of the pattern.

        Args:
            pattern: Regular expression.
            kind: A status code; `DROP`: the connection ends after half of the bytes; `WRONG_BYTES`: the right number
                of bytes, one of them flipped.
            times: How often.
        """
        self.faults += [(pattern, kind)] * times

    def due(self, path: str) -> int | str | None:
        """The fault that is due for a request, if any."""
        for number, (pattern, kind) in enumerate(self.faults):
            if re.search(pattern, path):
                del self.faults[number]
                return kind
        return None

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """Variables of a process whose Kaggle this is, with a cache of its own and no user settings."""
        return {
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "HTTP_PROXY": self.address,
            "http_proxy": self.address,
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            "KAGGLEHUB_CACHE": str(home / "kagglehub"),
            "KAGGLE_CONFIG_DIR": str(home / "kaggle_config"),
            "HOME": str(home),
            "KAGGLE_API_TOKEN": token or "",
            "KAGGLE_USERNAME": "",
            "KAGGLE_KEY": "",
        }


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    kaggle: Kaggle

    def log_message(self, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path, due = self._begin("POST")
        if isinstance(due, int):
            self._json({"code": due, "message": "refused"}, due)
        elif self.kaggle.needs_token and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json({"code": 403, "message": "Permission denied"}, 403)
        else:
            self._answer(path.removeprefix(_API), json.loads(body))

    def do_GET(self) -> None:
        path, due = self._begin("GET")
        if isinstance(due, int):
            self._json({"message": "busy"}, due)
            return
        _, owner, name, version = path.strip("/").split("/")
        self._send(self.kaggle.archives[f"{owner}/{name}", int(version.removesuffix(".zip"))], due)

    def _begin(self, method: str) -> tuple[str, int | str | None]:
        path = urlsplit(self.path).path
        self.kaggle.requests.append((method, path, self.headers.get("Range", "")))
        return path, self.kaggle.due(f"{path} {self.headers.get('Range', '')}")

    def _answer(self, call: str, wanted: dict) -> None:
        handle = f"{wanted['ownerSlug']}/{wanted['datasetSlug']}"
        versions = [version for known, version in self.kaggle.archives if known == handle]
        version = wanted.get("datasetVersionNumber") or max(versions, default=0)
        if (handle, version) not in self.kaggle.archives:
            self._json({"code": 404, "message": "Not found"}, 404)
        elif call == "/GetDataset":
            self._json({"currentVersionNumber": max(versions)})
        else:
            self.send_response(302)
            self.send_header("Location", f"http://localhost/storage/{handle}/{version}.zip")
            self._end(b"")

    def _send(self, content: bytes, due: int | str | None) -> None:
        checksum = base64.b64encode(hashlib.md5(content).digest()).decode()
        if due == WRONG_BYTES:
            content = content[:-1] + bytes([content[-1] ^ 0xFF])
        size, start = len(content), 0
        if (asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))) and not (
            self.kaggle.ignores_range
        ):
            start = int(asked[1])
        self.send_response(206 if start else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", "application/zip")
        if self.kaggle.publishes_checksum:
            self.send_header("x-goog-hash", f"crc32c=AAAAAA==,md5={checksum}")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        rest = content[start:]
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        given = rest[: len(rest) // 2] if due == DROP else rest
        self.kaggle.bytes_sent += len(given)
        try:
            self.wfile.write(given)
            self.wfile.flush()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client asks for the rest on another connection
        if due == DROP:
            self.close_connection = True
            with suppress(OSError):  # the client may have gone first
                self.connection.shutdown(2)

    def _json(self, document: object, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if status == 429:
            self.send_header("Retry-After", "0")
        self._end(json.dumps(document).encode())

    def _end(self, content: bytes) -> None:
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def zipped(files: Mapping[str, bytes]) -> bytes:
    """A zip file that holds these files, as they are."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


@contextmanager
def kaggle_server() -> Iterator[Kaggle]:
    """Serve an empty Kaggle on a free port of this machine for a while."""
    kaggle = Kaggle()
    handler = type("_BoundHandler", (_Handler,), {"kaggle": kaggle})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    kaggle.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield kaggle
    finally:
        server.shutdown()
        server.server_close()

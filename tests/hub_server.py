"""A local HTTP server that speaks as Hugging Face, ModelScope and Google's storage do.

It misbehaves on request.
"""

import base64
import functools
import hashlib
import http.server
import json
import threading
import urllib.parse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@functools.cache
def crc32c(data: bytes) -> int:
    """Bit by bit, after the definition (RFC 3720, appendix B.4)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


class HubServer(http.server.ThreadingHTTPServer):
    """What it has, how it misbehaves, and what it was asked for.

    files: name -> content.
    large: names that lie under git-lfs on Hugging Face.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes], large=()):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.large = set(large)
        # Misbehaviour.
        self.drops = {}  # name -> bytes after which the next connections break off
        self.damages = {}  # name -> number of times its first byte arrives changed
        self.refused = set()  # names that are listed and not given
        self.keeps_ranges = True  # False: every answer is the whole file
        # Record.
        self.ranges = []  # (name, where the request started) of each answer with content
        self.paths = []  # of all requests
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """Connections that break are the point."""

    def huggingface(self) -> list[dict]:
        entries = [
            {"type": "directory", "path": "physical-intelligence", "oid": "0" * 40, "size": 0}
        ]
        for name, data in self.files.items():
            git = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
            entry = {"type": "file", "path": name, "size": len(data), "oid": git}
            if name in self.large:
                entry["lfs"] = {
                    "oid": hashlib.sha256(data).hexdigest(),
                    "size": len(data),
                    "pointerSize": 134,
                }
            entries.append(entry)
        return entries

    def modelscope(self) -> dict:
        entries = [{"Path": "physical-intelligence", "Type": "tree", "Size": 0}]
        for name, data in self.files.items():
            digest = hashlib.sha256(data).hexdigest()
            entries.append({"Path": name, "Type": "blob", "Size": len(data), "Sha256": digest})
        return {"Code": 200, "Data": {"Files": entries}}

    def google(self, prefix: str, page: str) -> dict:
        """One object a page, as if they were thousands."""
        names = sorted(name for name in self.files if name.startswith(prefix))
        number = int(page or 0)
        items = []
        for name in names[number : number + 1]:
            data = self.files[name]
            crc = base64.b64encode(crc32c(data).to_bytes(4, "big")).decode()
            items.append({"name": name, "size": str(len(data)), "crc32c": crc})
        answer = {"items": items}
        if number + 1 < len(names):
            answer["nextPageToken"] = str(number + 1)
        return answer


class _Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        """Quiet."""

    def do_HEAD(self):
        self._answer(with_content=False)

    def do_GET(self):
        self._answer(with_content=True)

    def _answer(self, with_content):
        url = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(url.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        self.server.paths.append(path)
        if path.startswith("/api/v1/models/"):
            self._answer_modelscope(path, query)
        elif path.startswith("/storage/v1/b/"):
            self._answer_google(path, query)
        else:
            self._answer_huggingface(path, with_content)

    def _answer_modelscope(self, path, query):
        if path.endswith("/repo"):
            self._file(query["FilePath"])
        else:
            self._json(self.server.modelscope())

    def _answer_google(self, path, query):
        name = path.partition("/o/")[2]
        if name:
            self._file(name)
        else:
            self._json(self.server.google(query["prefix"], query.get("pageToken", "")))

    def _answer_huggingface(self, path, with_content):
        if "/tree/" in path:
            self._json(self.server.huggingface())
        elif path.startswith("/api/"):
            siblings = [{"rfilename": name} for name in self.server.files]
            self._json({"id": "RLinf/x", "sha": COMMIT, "siblings": siblings})
        else:
            self._file(path.partition(f"/resolve/{COMMIT}/")[2], with_content)

    def _json(self, tree):
        content = json.dumps(tree).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _absent(self):
        self.send_response(404)
        self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _file(self, name, with_content=True):
        hub = self.server
        if name not in hub.files or name in hub.refused:
            self._absent()
            return
        content = hub.files[name]
        start = 0
        if self.headers.get("Range") and hub.keeps_ranges:
            start = int(self.headers["Range"].removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if with_content:
            hub.ranges.append((name, start))
        self.end_headers()
        if not with_content:
            return
        if start == 0 and hub.damages.get(name, 0) > 0:
            hub.damages[name] -= 1
            content = bytes([content[0] ^ 1]) + content[1:]
        content = content[start:]
        cuts = hub.drops.get(name)
        if cuts:
            content = content[: cuts.pop(0)]
        self.wfile.write(content)

"""A local HTTP server that speaks as Hugging Face, ModelScope and Google's storage do, and misbehaves on request."""

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
    """`files`: name -> content.  `drops`: name -> bytes after which the next connections break off.  `damages`: name -> number
    of times its first byte arrives changed.  `ranges`: (name, where a request started) of each answer with content; `paths`: all requests."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes], large=()):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.large = files, set(large)  # large: under git-lfs on Hugging Face
        self.drops, self.damages, self.refused, self.keeps_ranges = {}, {}, set(), True
        self.ranges, self.paths = [], []
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
        entries = [
            {
                "Path": name,
                "Type": "blob",
                "Size": len(data),
                "Sha256": hashlib.sha256(data).hexdigest(),
            }
            for name, data in self.files.items()
        ]
        return {
            "Code": 200,
            "Data": {
                "Files": [{"Path": "physical-intelligence", "Type": "tree", "Size": 0}, *entries]
            },
        }

    def google(self, prefix: str, page: str) -> dict:
        """One object a page, as if they were thousands."""
        items = [
            {
                "name": name,
                "size": str(len(data)),
                "crc32c": base64.b64encode(crc32c(data).to_bytes(4, "big")).decode(),
            }
            for name, data in sorted(self.files.items())
            if name.startswith(prefix)
        ]
        at = int(page or 0)
        return {"items": items[at : at + 1]} | (
            {"nextPageToken": str(at + 1)} if at + 1 < len(items) else {}
        )


class _Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        """Quiet."""

    def do_HEAD(self):
        self._answer(with_content=False)

    def do_GET(self):
        self._answer(with_content=True)

    def _answer(self, with_content):
        path, _, query = self.path.partition("?")
        path, query = urllib.parse.unquote(path), dict(urllib.parse.parse_qsl(query))
        hub = self.server
        hub.paths.append(path)
        if path.startswith("/api/v1/models/"):
            return (
                self._file(query["FilePath"])
                if path.endswith("/repo")
                else self._json(hub.modelscope())
            )
        if path.startswith("/storage/v1/b/"):
            name = path.partition("/o/")[2]
            return (
                self._file(name)
                if name
                else self._json(hub.google(query["prefix"], query.get("pageToken", "")))
            )
        if "/tree/" in path:
            return self._json(hub.huggingface())
        if path.startswith("/api/"):
            return self._json(
                {
                    "id": "RLinf/x",
                    "sha": COMMIT,
                    "siblings": [{"rfilename": name} for name in hub.files],
                }
            )
        return self._file(path.partition(f"/resolve/{COMMIT}/")[2], with_content)

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
            return self._absent()
        content, start = hub.files[name], 0
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
            return None
        if start == 0 and hub.damages.get(name, 0) > 0:
            hub.damages[name] -= 1
            content = bytes([content[0] ^ 1]) + content[1:]
        cuts = hub.drops.get(name, [])
        self.wfile.write(content[start : start + cuts.pop(0)] if cuts else content[start:])
        return None

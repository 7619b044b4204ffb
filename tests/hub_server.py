"""Hugging Face Hub on loopback with one dataset repository, for the real huggingface_hub client.

As on the Hub, a HEAD of a large file gives its SHA-256 and redirects to its address, and a GET with
a Range resumes an interrupted download.
"""

import hashlib
import http.server
import json
import re
import threading

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """A context manager.

    Args:
      repository: "OWNER/NAME".
      files: what the repository holds, by path; `.parquet` files are LFS files.

    Attributes:
      url: for HF_ENDPOINT.
      commit: of `main`.
      refuse: (status, X-Error-Code) of every call, or None.
      cut: path of a file of which the next GET ends in the middle, or "".
      spoil: path of a file of which other bytes are sent, or "".
      ranges: the Range headers that came.
    """

    def __init__(self, repository: str, files: dict[str, bytes]):
        self.repository, self.files, self.commit = repository, files, COMMIT
        self.refuse: tuple[int, str] | None = None
        self.cut = self.spoil = ""
        self.ranges: list[str] = []
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._bytes = f"http://localhost:{self._http.server_port}"  # on the Hub another host, too

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def entry(self, path: str) -> dict[str, object]:
        """A file as the API lists it."""
        content = self.files[path]
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry = {"type": "file", "path": path, "size": len(content), "oid": oid}
        if path.endswith(".parquet"):
            sha = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha, "size": len(content), "pointerSize": 134}
        return entry

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of a GET, without its Range."""
        api, resolve = f"/api/datasets/{self.repository}", f"/datasets/{self.repository}/resolve/"
        if self.refuse and not path.startswith("/bytes/"):
            status, code = self.refuse
            headers = {"X-Error-Code": code, "X-Error-Message": "refused"}
            return status, headers, b'{"error": "refused"}'
        if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            return 200, {}, json.dumps({"id": self.repository, "sha": COMMIT}).encode()
        if path == f"{api}/tree/{COMMIT}":
            return 200, {}, json.dumps([self.entry(name) for name in self.files]).encode()
        if path.startswith(f"{resolve}{COMMIT}/"):
            name = path.removeprefix(f"{resolve}{COMMIT}/")
            entry, headers = self.entry(name), {"X-Repo-Commit": COMMIT}
            if "lfs" not in entry:
                return 200, {**headers, "ETag": f'"{entry["oid"]}"'}, self.files[name]
            linked = {
                "X-Linked-Etag": f'"{entry["lfs"]["oid"]}"',
                "Location": f"{self._bytes}/bytes/{name}",
            }
            return 302, {**headers, **linked, "X-Linked-Size": str(entry["size"])}, b""
        if path.startswith("/bytes/"):
            name = path.removeprefix("/bytes/")
            content = self.files[name]
            return 200, {}, content[::-1] if name == self.spoil else content
        return 404, {"X-Error-Code": "RevisionNotFound"}, b'{"error": "no such revision"}'

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                path = self.path.partition("?")[0]
                status, headers, body = server.answer(path)
                whole = len(body)
                if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                    server.ranges.append(wanted[0])
                    body = body[int(wanted[1]) : int(wanted[2]) + 1 if wanted[2] else None]
                    headers["Content-Range"] = f"bytes {wanted[1]}-{whole - 1}/{whole}"
                    status = 206
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "HEAD":
                    return
                if server.cut and path == f"/bytes/{server.cut}":
                    server.cut, self.close_connection = "", True
                    body = body[: len(body) // 2]
                self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, *unused):
                """Says nothing."""

        return Handler

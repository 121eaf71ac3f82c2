"""A hub on 127.0.0.1: as much of its HTTP API as huggingface_hub 2.4 and datasets 5.2 use to read a repository, and to
make and fill one.

Repositories are dictionaries of commits; every request is remembered, so that a test can say what was asked for. A download can
be cut off after so many bytes. Nothing here is a mock of a client: the real ones talk to it through HF_ENDPOINT.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

KINDS = {"models": "model", "datasets": "dataset"}


@dataclass
class Repository:
    """Commits by id, branches and tags by name; private where it has a token, gated where nobody may read it yet."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False
    message: str = ""
    """Of the last commit that was sent."""

    def commit(self, files: Mapping[str, bytes], ref: str = "main") -> str:
        """Add a commit of exactly these files and move `ref` to it; returns its id."""
        digest = hashlib.sha1()
        for path, content in sorted(files.items()):
            digest.update(f"{path}\0{len(content)}\0".encode() + content)
        self.commits[digest.hexdigest()] = dict(files)
        self.refs[ref] = digest.hexdigest()
        return digest.hexdigest()

    def resolve(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.refs.get(revision)


@dataclass
class Hub:
    """What the server serves, and what it was asked."""

    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    """By (`model` or `dataset`, `owner/name`)."""
    requests: list[str] = field(default_factory=list)
    """`METHOD path`, with ` from N` where a part was asked for."""
    cut: dict[str, int] = field(default_factory=dict)
    """By file name: break the next download of it after so many bytes."""
    endpoint: str = ""
    writers: dict[str, str] = field(default_factory=dict)
    """By token, the owner whose repositories may be made and written with it."""

    def repository(self, kind: str, name: str, token: str | None = None) -> Repository:
        return self.repositories.setdefault((kind, name), Repository(token=token))


def directory_files(directory: Path) -> dict[str, bytes]:
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@contextmanager
def serve(hub: Hub, port: int = 0) -> Iterator[Hub]:
    """Serve `hub` from a thread; its `endpoint` is set, and the server is gone when the block ends."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Refused(Exception):
    def __init__(self, status: int, code: str | None = None, message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(self._route)

    def do_GET(self) -> None:
        self._answer(self._route)

    def do_POST(self) -> None:
        self._answer(self._route)

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, route: Any) -> None:
        begin = self._begin()
        self.hub.requests.append(f"{self.command} {unquote(self.path)}" + (f" from {begin}" if begin else ""))
        try:
            route(unquote(urlsplit(self.path).path).strip("/").split("/"))
        except _Refused as refusal:
            headers = {"X-Error-Code": refusal.code} if refusal.code else {}
            if refusal.message:
                headers["X-Error-Message"] = refusal.message
            self._send(refusal.status, json.dumps({"error": refusal.message}).encode(), headers)

    def _route(self, parts: list[str]) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if parts[:3] == ["api", "repos", "create"]:
            self._create(json.loads(body))
        elif parts[:2] == ["api", "validate-yaml"]:
            self._json({"errors": [], "warnings": []})
        elif parts[0] == "api" and parts[1:2] and parts[1] in KINDS:
            self._api(KINDS[parts[1]], parts[2:], body)
        elif "resolve" in parts:
            kind = "dataset" if parts[0] == "datasets" else "model"
            at = parts.index("resolve")
            name = "/".join(parts[1 if kind == "dataset" else 0 : at])
            self._file(self._repository(kind, name), parts[at + 1], "/".join(parts[at + 2 :]))
        else:
            raise _Refused(404, None, "no such page")

    def _api(self, kind: str, parts: list[str], body: bytes) -> None:
        name, rest = "/".join(parts[:2]), parts[2:]
        repository = self._repository(kind, name)
        if not rest or rest[0] == "revision":
            commit = self._commit(repository, "/".join(rest[1:]) or "main")
            files = repository.commits[commit]
            self._json(
                {
                    "id": name,
                    "sha": commit,
                    "private": repository.token is not None,
                    "siblings": [{"rfilename": path} for path in sorted(files)],
                    "tags": [],
                }
            )
        elif rest[0] == "tree":
            files = repository.commits[self._commit(repository, rest[1])]
            self._json(_tree(files, "/".join(rest[2:]), recursive="recursive=true" in self.path.lower()))
        elif rest[0] == "paths-info":
            files = repository.commits[self._commit(repository, rest[1])]
            asked = json.loads(body)["paths"]
            self._json([entry for path in asked for entry in _entries(files, path)])
        elif rest[0] == "preupload":
            paths = [file["path"] for file in json.loads(body)["files"]]
            self._json({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]})
        elif rest[0] == "commit":
            self._check_writer(name.split("/")[0])
            lines = [json.loads(line) for line in body.splitlines()]
            files = dict(repository.commits[self._commit(repository, rest[1])])
            for line in lines:
                value = line["value"]
                if line["key"] == "header":
                    repository.message = value["summary"]
                elif line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            commit = repository.commit(files)
            self._json({"commitUrl": f"{self.hub.endpoint}/{name}/commit/{commit}", "commitOid": commit, "success": True})
        else:
            raise _Refused(404, None, "no such page")

    def _create(self, asked: Mapping[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        token = self._check_writer(asked["organization"])
        if ("model", name) in self.hub.repositories:
            raise _Refused(409, None, "You already created this model repo")
        self.hub.repository("model", name, token if _is_private(asked) else None).commit({})
        self._json({"url": f"{self.hub.endpoint}/{name}"})

    def _check_writer(self, owner: str) -> str:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in self.hub.writers:
            raise _Refused(401, None, "Invalid username or password.")
        if self.hub.writers[token] != owner:
            raise _Refused(403, None, f"You don't have the rights to create a model under the namespace {owner}")
        return token

    def _file(self, repository: Repository, revision: str, path: str) -> None:
        commit = self._commit(repository, revision)
        content = repository.commits[commit].get(path)
        if content is None:
            raise _Refused(404, "EntryNotFound", "Entry not found")
        digest = hashlib.sha256(content).hexdigest()
        headers = {
            "ETag": f'"{digest}"',
            "X-Linked-ETag": f'"{digest}"',
            "X-Linked-Size": str(len(content)),
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
        }
        begin = self._begin()
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        self._send(206 if begin else 200, content[begin:], headers, cut=path)

    def _repository(self, kind: str, name: str) -> Repository:
        repository = self.hub.repositories.get((kind, name))
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if repository is None or (repository.token and repository.token != given):
            # The hub does not tell a repository that is not there from one that the asker may not see.
            if given:
                raise _Refused(404, "RepoNotFound", "Repository not found")
            raise _Refused(401, "RepoNotFound", "Invalid username or password.")
        if repository.gated and "resolve" in self.path:
            raise _Refused(403, "GatedRepo", "Access to this model is restricted")
        return repository

    def _commit(self, repository: Repository, revision: str) -> str:
        commit = repository.resolve(revision)
        if commit is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _begin(self) -> int:
        asked = self.headers.get("Range", "bytes=0-").removeprefix("bytes=")
        return int(asked.split("-")[0] or 0)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: Mapping[str, str], cut: str = "") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        broken = self.hub.cut.pop(cut, None) if cut else None
        self.wfile.write(content if broken is None else content[:broken])
        if broken is not None:
            self.wfile.flush()
            self.close_connection = True


def _is_private(asked: Mapping[str, Any]) -> bool:
    return bool(asked.get("private", asked.get("visibility") == "private"))


def _entries(files: Mapping[str, bytes], path: str) -> list[dict[str, Any]]:
    if path in files:
        return [_entry(path, files[path])]
    return [{"type": "directory", "path": path, "oid": _oid(path.encode()), "size": 0}] if _below(files, path) else []


def _tree(files: Mapping[str, bytes], folder: str, *, recursive: bool) -> list[dict[str, Any]]:
    if folder and not _below(files, folder):
        raise _Refused(404, "EntryNotFound", "Entry not found")
    found: dict[str, dict[str, Any]] = {}
    for path in _below(files, folder):
        rest = path.removeprefix(f"{folder}/" if folder else "").split("/")
        for depth in range(1, len(rest) if recursive else min(len(rest), 2)):
            above = "/".join(filter(None, (folder, *rest[:depth])))
            found[above] = {"type": "directory", "path": above, "oid": _oid(above.encode()), "size": 0}
        if recursive or len(rest) == 1:
            found[path] = _entry(path, files[path])
    return list(found.values())


def _below(files: Mapping[str, bytes], folder: str) -> list[str]:
    return sorted(path for path in files if not folder or path.startswith(f"{folder}/"))


def _entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "oid": _oid(content), "size": len(content)}


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

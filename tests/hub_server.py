"""A stand-in for the Hugging Face Hub on loopback, which the real huggingface_hub client talks to.

It serves repositories of models, and keeps them as the Hub does: a commit can be reached while a
reference leads to it, and a large file is stored, and listed, until it is deleted by its digest.
Requests fail on demand::

    with connected_hub(monkeypatch, tmp_path) as hub:
        api = HfApi(endpoint=hub.url, token="hf_test")
        hub.fail(times=2, match=r"POST .*/commit/")
        hub.cut(match=r"PUT /lfs-upload/")
"""

import base64
import hashlib
import json
import re
import secrets
import socket
import threading
import warnings
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants
from huggingface_hub.utils import close_session

LARGE_SUFFIXES = (".safetensors", ".bin", ".joblib", ".npy", ".npz", ".pkl", ".pt", ".pth", ".zip")
ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE_SUFFIXES)
DATE = "2026-01-01T00:00:00.000Z"
USER = "tester"


@dataclass
class Reply:
    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class Refusal(Exception):
    """An answer that is an error; the client chooses its exception by status and code."""

    def __init__(self, status, message, code=None, headers=None, **body):
        super().__init__(message)
        headers = {"X-Error-Message": message} | (headers or {})
        headers |= {"X-Error-Code": code} if code else {}
        self.reply = Reply(json.dumps({"error": message} | body).encode(), status, headers)


@dataclass(frozen=True)
class File:
    """A file of a commit; of a large one, the content is the pointer to `Hub.objects`."""

    content: bytes
    size: int
    sha256: str | None = None

    @classmethod
    def pointer(cls, sha256, size):
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        return cls(text.encode(), size, sha256)

    @property
    def blob_id(self):
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass(frozen=True)
class Commit:
    files: dict[str, File]
    parent: str | None
    title: str
    message: str = ""


class Repository:
    """Commits, what leads to them ("refs/heads/main", "refs/tags/v1", "refs/pr/1"), and large files."""

    def __init__(self, name, private=False):
        self.name, self.private = name, private
        self.commits: dict[str, Commit] = {}
        self.uploads: dict[str, dict] = {}  # by digest, as the Hub lists them
        attributes = File(ATTRIBUTES.encode(), len(ATTRIBUTES))
        first = self.add(Commit({".gitattributes": attributes}, None, "initial commit"))
        self.refs: dict[str, str] = {"refs/heads/main": first}

    def add(self, commit):
        oid = secrets.token_hex(20)
        self.commits[oid] = commit
        return oid

    def reference(self, name):
        """Return the full name of a branch, a tag, a pull request or a conversion."""
        for ref in (f"refs/heads/{name}", f"refs/tags/{name}", name):
            if ref in self.refs:
                return ref
        raise Refusal(404, f"Invalid rev id: {name}", "RevisionNotFound")

    def movable(self, name):
        ref = self.reference(name)
        if ref.startswith("refs/tags/"):
            raise Refusal(400, "Invalid reference for a branch")
        return ref

    def resolve(self, revision):
        """Return the commit of a reference, or a commit that some reference leads to."""
        return revision if revision in self.commits else self.refs[self.reference(revision)]

    def files(self, revision="main"):
        return self.commits[self.resolve(revision)].files

    def history(self, revision="main"):
        oid = self.resolve(revision)
        while oid is not None:
            yield oid
            oid = self.commits[oid].parent

    def prune(self):
        """Delete the commits that no reference leads to."""
        kept = {oid for head in self.refs.values() for oid in self.history(head)}
        self.commits = {oid: commit for oid, commit in self.commits.items() if oid in kept}

    def rewrite_without(self, digests):
        """Leave large files out of all commits; these, and what follows them, become other commits."""
        renamed = {}
        for oid, old in list(self.commits.items()):
            files = {path: file for path, file in old.files.items() if file.sha256 not in digests}
            new = Commit(files, renamed.get(old.parent, old.parent), old.title, old.message)
            if new != old:
                renamed[oid] = self.add(new)
        self.refs = {ref: renamed.get(oid, oid) for ref, oid in self.refs.items()}
        self.prune()


NAME = r"(?P<repository>[^/]+/[^/]+)"
API = "/api/models/" + NAME
ROUTES = []


def route(method, pattern):
    """Register what answers, with JSON or a Reply; it gets the parts of the path but the repository."""

    def register(function):
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return register


class Handler(BaseHTTPRequestHandler):
    """Answers one request after another; `repository` and `body` are those of the present one."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    repository: Repository
    body: bytes

    @property
    def token(self):
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def json(self):
        return json.loads(self.body)

    @route("POST", "/api/validate-yaml")
    def validate_card(self):
        return {"errors": [], "warnings": []}

    @route("POST", "/api/repos/create")
    def create_repository(self):
        wanted = self.json()
        name = f"{wanted.get('organization') or USER}/{wanted['name']}"
        url = f"{self.server.url}/{name}"
        if self.token not in self.server.tokens:
            raise Refusal(401 if self.token is None else 403, f"You have no right to create {name}")
        if name in self.server.repos:
            raise Refusal(409, "You already created this model repo", url=url)
        self.server.repos[name] = Repository(name, wanted.get("visibility") == "private")
        return {"url": url, "name": name}

    @route("GET", API + "(?:/revision/(?P<revision>[^/]+))?")
    def describe(self, revision):
        repository = self.repository
        oid = repository.resolve(revision or "main")
        siblings = [{"rfilename": path} for path in sorted(repository.files(oid))]
        return {"id": repository.name, "sha": oid, "private": repository.private, "siblings": siblings}

    @route("GET", API + "/refs")
    def list_references(self):
        answer = {"branches": [], "tags": [], "converts": [], "pullRequests": []}
        kinds = {"heads": "branches", "tags": "tags", "convert": "converts", "pr": "pullRequests"}
        for ref, oid in sorted(self.repository.refs.items()):
            _, kind, name = ref.split("/", 2)
            shown = ref if kind == "pr" else name
            answer[kinds[kind]].append({"name": shown, "ref": ref, "targetCommit": oid})
        return answer

    @route("POST", API + "/(?P<kind>branch|tag)/(?P<argument>[^/]+)")
    def create_reference(self, kind, argument):
        if kind == "branch":
            ref, revision = f"refs/heads/{argument}", self.json().get("startingPoint") or "main"
        else:
            ref, revision = f"refs/tags/{self.json()['tag']}", argument
        if ref in self.repository.refs:
            raise Refusal(409, f"Reference {ref} already exists")
        self.repository.refs[ref] = self.repository.resolve(revision)

    @route("DELETE", API + "/(?P<kind>branch|tag)/(?P<name>[^/]+)")
    def delete_reference(self, kind, name):
        ref = f"refs/{'heads' if kind == 'branch' else 'tags'}/{name}"
        if ref == "refs/heads/main":
            raise Refusal(403, f"Cannot delete {ref}")
        del self.repository.refs[self.repository.reference(ref)]
        self.repository.prune()

    @route("GET", API + "/commits/(?P<revision>[^/]+)")
    def list_commits(self, revision):
        about = {"date": DATE, "authors": [{"user": USER}]}
        commits = [(oid, self.repository.commits[oid]) for oid in self.repository.history(revision)]
        return [{"id": oid, "title": old.title, "message": old.message} | about for oid, old in commits]

    @route("GET", API + "/tree/(?P<revision>[^/]+)")
    def list_files(self, revision):
        """List all folders at once: this is what snapshots, and deletions by pattern, are made from."""
        entries = []
        for path, file in sorted(self.repository.files(revision).items()):
            entry = {"type": "file", "path": path, "size": file.size, "oid": file.blob_id}
            if file.sha256:
                entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": len(file.content)}
            entries.append(entry)
        return entries

    @route("POST", API + "/preupload/(?P<revision>[^/]+)")
    def choose_upload_modes(self, revision):
        stored = self.repository.files(revision)
        answer = []
        for file in self.json()["files"]:
            path, old = file["path"], stored.get(file["path"])
            mode = "lfs" if path.endswith(LARGE_SUFFIXES) else "regular"
            oid = old and (old.sha256 or old.blob_id)
            answer.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answer}

    @route("POST", f"/{NAME}.git/info/lfs/objects/batch")
    def prepare_uploads(self):
        objects = []
        for wanted in self.json()["objects"]:
            href = f"{self.server.url}/lfs-upload/{self.repository.name}/{wanted['oid']}"
            missing = wanted["oid"] not in self.repository.uploads
            objects.append(wanted | ({"actions": {"upload": {"href": href}}} if missing else {}))
        return {"transfer": "basic", "objects": objects}

    @route("PUT", "/lfs-upload/(?P<name>[^/]+/[^/]+)/(?P<sha256>[0-9a-f]{64})")
    def store_object(self, name, sha256):
        if hashlib.sha256(self.body).hexdigest() != sha256:
            raise Refusal(400, "The content has another digest")
        self.server.objects[sha256] = self.body
        # files are deleted by their "fileOid"; of "oid", nothing says that it is a digest of the content
        entry = {"fileOid": sha256, "oid": sha256[::-1], "filename": sha256, "ref": None}
        self.server.repos[name].uploads[sha256] = entry | {"size": len(self.body), "pushedAt": DATE}

    @route("POST", API + "/commit/(?P<revision>[^/]+)")
    def commit(self, revision):
        repository = self.repository
        ref = repository.movable(revision)
        head, header = repository.refs[ref], {}
        files = dict(repository.files(head))
        for operation in map(json.loads, self.body.splitlines()):
            kind, value = operation["key"], operation["value"]
            path = value.get("path")
            if kind == "header":
                header = value
                if not head.startswith(header.get("parentCommit", "")):
                    raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            elif kind == "file":
                content = base64.b64decode(value["content"])
                files[path] = File(content, len(content))
            elif kind == "lfsFile":
                upload = repository.uploads.get(value["oid"])
                if upload is None:
                    raise Refusal(400, f"The large file of {path} was not uploaded")
                files[path] = File.pointer(value["oid"], upload["size"])
                if upload["ref"] is None:
                    upload |= {"ref": ref.removeprefix("refs/heads/"), "filename": path}
            elif kind == "deletedFile" and files.pop(path, None) is None:
                raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
        made = Commit(files, head, header["summary"], header["description"])
        repository.refs[ref] = oid = repository.add(made)
        return {"commitOid": oid, "commitUrl": f"{self.server.url}/{repository.name}/commit/{oid}"}

    @route("POST", API + "/super-squash/(?P<revision>[^/]+)")
    def squash(self, revision):
        ref = self.repository.movable(revision)
        made = Commit(self.repository.files(ref), None, self.json()["message"])
        self.repository.refs[ref] = self.repository.add(made)
        self.repository.prune()

    @route("GET", API + "/lfs-files")
    def list_large_files(self):
        return list(self.repository.uploads.values())

    @route("POST", API + "/lfs-files/batch")
    def delete_large_files(self):
        deletions = self.json()["deletions"]
        if deletions["rewriteHistory"]:
            self.repository.rewrite_without(deletions["sha"])
        for digest in deletions["sha"]:
            self.repository.uploads.pop(digest, None)
            if not any(digest in other.uploads for other in self.server.repos.values()):
                self.server.objects.pop(digest, None)

    @route("GET", f"/{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
    def download(self, revision, path):
        oid = self.repository.resolve(revision)
        headers = {"X-Repo-Commit": oid, "Content-Type": "application/octet-stream"}
        content = self.server.read(self.repository.name, path, oid)
        if content is None:
            raise Refusal(404, "Entry not found", "EntryNotFound", headers)
        file = self.repository.files(oid)[path]
        headers["ETag"] = f'"{file.sha256 or file.blob_id}"'
        if file.sha256:
            headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(len(content))}
        rest = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if rest is None:
            return Reply(content, 200, headers)
        headers["Content-Range"] = f"bytes {rest[1]}-{len(content) - 1}/{len(content)}"
        return Reply(content[int(rest[1]) :], 206, headers)

    def respond(self):
        fault = self.server.next_fault(f"{self.command} {self.path}")
        if fault is None:
            self.send(self.answer())
        elif fault.status is None:
            self.hang_up(fault)
        else:
            self.answer() if fault.after else self.receive()
            self.send(Refusal(fault.status, "Internal Error").reply)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = respond

    def hang_up(self, fault):
        self.close_connection = True
        if fault.after:
            self.answer()
        elif self.command == "GET":
            self.send(self.answer(), half=True)
        else:
            self.receive(half=True)

    def answer(self):
        self.body = self.receive() or b"{}"
        try:
            with self.server.lock:
                data = self.dispatch()
        except Refusal as refusal:
            return refusal.reply
        return data if isinstance(data, Reply) else Reply(json.dumps(data).encode())

    def dispatch(self):
        if self.token in self.server.expired:
            raise Refusal(401, "Invalid credentials in Authorization header")
        path, reading = urlsplit(self.path).path, self.command in ("GET", "HEAD")
        for method, pattern, function in ROUTES:
            found = pattern.fullmatch(path)
            if found and method == ("GET" if reading else self.command):
                parts = {name: text and unquote(text) for name, text in found.groupdict().items()}
                if "repository" in parts:
                    self.repository = self.server.find(parts.pop("repository"), self.token, reading)
                return function(self, **parts)
        raise Refusal(501, f"There is no {self.command} {path} here")

    def log_message(self, *_):
        pass

    def receive(self, half=False):
        if self.headers.get("Transfer-Encoding") != "chunked":
            length = int(self.headers.get("Content-Length") or 0)
            return self.rfile.read(length // 2 if half else length)
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size // 2 if half else size)
            if half:
                return body
            self.rfile.readline()
        self.rfile.readline()
        return body

    def send(self, reply, half=False):
        self.send_response(reply.status)
        for name, value in (reply.headers | {"Content-Length": str(len(reply.body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body[: len(reply.body) // 2] if half else reply.body)


class Hub(ThreadingTCPServer):
    """What is stored, who may see it (`tokens`), what was asked (`log`), and what shall fail."""

    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = "http://{}:{}".format(*self.server_address)
        self.repos: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # large files by digest
        self.tokens, self.expired = {"hf_test"}, {"hf_expired"}
        self.log: list[tuple[str, str]] = []
        self.faults: list[SimpleNamespace] = []
        self.lock, self.connections = threading.RLock(), set()
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.thread.join()
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def process_request(self, request, client_address):
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        self.connections.discard(request)
        super().shutdown_request(request)

    def fail(self, times=1, status=500, match="", after=False):
        """Answer the next requests whose "METHOD path" matches with an error, `after` obeying or not."""
        self.faults.append(SimpleNamespace(match=match, times=times, status=status, after=after))

    def cut(self, match="", times=1, after=False):
        """Hang up in the middle of the next requests that match, or `after` obeying them."""
        self.fail(times, None, match, after)

    def next_fault(self, line):
        with self.lock:
            self.log.append(tuple(line.split(" ", 1)))
            fault = next((one for one in self.faults if one.times and re.search(one.match, line)), None)
            if fault is not None:
                fault.times -= 1
            return fault

    def find(self, name, token, reading):
        """Return a repository if the token may read or change it."""
        repository, known = self.repos.get(name), token in self.tokens
        visible = repository is not None and (known or not repository.private)
        if visible and (known or reading):
            return repository
        if token is None:  # over https, the client sees without the code that a repository is missing
            raise Refusal(401, "Invalid username or password.", "RepoNotFound")
        if visible:
            raise Refusal(403, "You have no write access")
        raise Refusal(404, "Repository not found", "RepoNotFound")

    def read(self, name, path, revision="main"):
        """Return the content of a file, or None if it is missing, or was large and is deleted."""
        file = self.repos[name].files(revision).get(path)
        if file is None or file.sha256 is None:
            return file and file.content
        return self.objects.get(file.sha256) if file.sha256 in self.repos[name].uploads else None


@contextmanager
def connected_hub(monkeypatch, home):
    """Run a hub, the only one that this process' client knows; caches and tokens are kept in `home`."""
    settings = {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True, "HF_HUB_DISABLE_TELEMETRY": True}
    settings |= {"HF_HUB_CACHE": str(home / "cache"), "HF_TOKEN_PATH": str(home / "token")}
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with Hub() as hub, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)  # how the client uploads
        files = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        settings |= {"ENDPOINT": hub.url, "HUGGINGFACE_CO_URL_TEMPLATE": files}
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        close_session()
        try:
            yield hub
        finally:
            close_session()

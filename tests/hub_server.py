"""A stand-in for the Hugging Face Hub on loopback, which the real huggingface_hub client talks to.

It serves repositories of models, and keeps them as the Hub does: a commit can be reached while a
reference leads to it, and a large file is stored, and listed, until it is deleted by its digest.
Requests fail on demand::

    with connected_hub(monkeypatch, tmp_path) as hub:
        hub.fail(times=2, match=r"POST .*/commit/")
        hub.cut(match=r"PUT /lfs-upload/")
"""

import base64
import hashlib
import json
import re
import secrets
import threading
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants
from huggingface_hub.utils import close_session

LARGE_SUFFIXES = (".bin", ".safetensors")
LICENSES = ("apache-2.0", "bsd-3-clause", "mit", "other")  # of a longer list
TOKEN = "hf_test"
DATE = "2026-01-01T00:00:00.000Z"


class Refusal(Exception):
    """An answer that is an error; the client chooses its exception by status and code."""

    def __init__(self, status, message, code=None, **more):
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.reply = json.dumps({"error": message} | more).encode(), status, headers


@dataclass(frozen=True)
class File:
    """A file of a commit; the content of a large one is in `Hub.objects`."""

    content: bytes
    size: int
    sha256: str | None = None

    @property
    def oid(self):
        return self.sha256 or hashlib.sha1(b"blob %d\0" % self.size + self.content).hexdigest()


@dataclass(frozen=True)
class Commit:
    files: dict[str, File]
    parent: str | None
    title: str


class Repository:
    """Commits, and what leads to them: "refs/heads/main", "refs/tags/v1", "refs/pr/1"."""

    def __init__(self, name, private):
        self.name, self.private, self.commits = name, private, {}
        self.refs = {"refs/heads/main": self.add(Commit({}, None, "initial commit"))}

    def add(self, commit):
        oid = secrets.token_hex(20)
        self.commits[oid] = commit
        return oid

    def resolve(self, revision):
        """Return the commit of a reference, or a commit that some reference leads to."""
        for ref in (f"refs/heads/{revision}", f"refs/tags/{revision}"):
            revision = self.refs.get(ref, revision)
        if revision not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return revision

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


NAME = r"(?P<repository>[^/]+/[^/]+)"
API = "/api/models/" + NAME
ROUTES = []


def route(method, pattern):
    """Register what answers, with JSON or what `send` takes; it gets the parts of the path."""

    def register(function):
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return register


class Handler(BaseHTTPRequestHandler):
    """Answers one request after another; `repository` and `body` are those of the present one."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def token(self):
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def json(self):
        return json.loads(self.body)

    @route("POST", "/api/validate-yaml")
    def validate_card(self):
        found = re.search(r"^license: (.+)$", self.json()["content"], re.M)
        if found and found[1] not in LICENSES:
            raise Refusal(400, "Invalid", errors=[{"message": '"license" must be one of [...]'}])
        return {"errors": [], "warnings": []}

    @route("POST", "/api/repos/create")
    def create_repository(self):
        wanted = self.json()
        name = f"{wanted['organization']}/{wanted['name']}"
        if self.token != TOKEN:
            raise Refusal(401 if self.token is None else 403, f"You have no right to create {name}")
        status = 409 if name in self.server.repos else 200
        if status == 200:
            self.server.repos[name] = Repository(name, wanted.get("visibility") == "private")
        return json.dumps({"url": f"{self.server.url}/{name}", "name": name}).encode(), status, {}

    @route("GET", API + "(?:/revision/(?P<revision>[^/]+))?")
    def describe(self, revision):
        oid = self.repository.resolve(revision or "main")
        return {"id": self.repository.name, "private": self.repository.private, "sha": oid}

    @route("GET", API + "/refs")
    def list_references(self):
        answer = {"branches": [], "tags": [], "converts": [], "pullRequests": []}
        kinds = {"heads": "branches", "tags": "tags", "pr": "pullRequests"}
        for ref, oid in self.repository.refs.items():
            _, kind, name = ref.split("/", 2)
            answer[kinds[kind]].append({"name": name, "ref": ref, "targetCommit": oid})
        return answer

    @route("POST", API + "/(?P<kind>branch|tag)/(?P<argument>[^/]+)")
    def create_reference(self, kind, argument):
        if kind == "branch":
            ref, revision = f"refs/heads/{argument}", "main"
        else:
            ref, revision = f"refs/tags/{self.json()['tag']}", argument
        self.repository.refs[ref] = self.repository.resolve(revision)

    @route("DELETE", API + "/tag/(?P<name>[^/]+)")
    def delete_tag(self, name):
        del self.repository.refs[f"refs/tags/{name}"]
        self.repository.prune()

    @route("GET", API + "/commits/(?P<revision>[^/]+)")
    def list_commits(self, revision):
        about = {"date": DATE, "authors": [], "message": ""}
        commits = [
            (oid, self.repository.commits[oid].title) for oid in self.repository.history(revision)
        ]
        return [{"id": oid, "title": title} | about for oid, title in commits]

    @route("GET", API + "/tree/(?P<revision>[^/]+)")
    def list_files(self, revision):
        entries = []
        for path, file in self.repository.files(revision).items():
            entry = {"type": "file", "path": path, "size": file.size, "oid": file.oid}
            if file.sha256:
                entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 1}
            entries.append(entry)
        return entries

    @route("POST", API + "/preupload/(?P<revision>[^/]+)")
    def choose_upload_modes(self, revision):
        stored, answer = self.repository.files(revision), []
        for path in (file["path"] for file in self.json()["files"]):
            mode = "lfs" if path.endswith(LARGE_SUFFIXES) else "regular"
            found = {"path": path, "uploadMode": mode, "shouldIgnore": False}
            answer.append(found | {"oid": stored[path].oid if path in stored else None})
        return {"files": answer}

    @route("POST", f"/{NAME}.git/info/lfs/objects/batch")
    def prepare_uploads(self):
        objects = self.json()["objects"]
        for wanted in objects:
            if wanted["oid"] not in self.server.objects:
                href = f"{self.server.url}/lfs-upload/{wanted['oid']}"
                wanted["actions"] = {"upload": {"href": href}}
        return {"transfer": "basic", "objects": objects}

    @route("PUT", "/lfs-upload/(?P<sha256>[0-9a-f]{64})")
    def store_object(self, sha256):
        if hashlib.sha256(self.body).hexdigest() != sha256:
            raise Refusal(400, "The content has another digest")
        self.server.objects[sha256] = self.body

    @route("POST", API + "/commit/(?P<branch>[^/]+)")
    def commit(self, branch):
        head = self.repository.resolve(branch)
        files, title = dict(self.repository.files(head)), ""
        for operation in map(json.loads, self.body.splitlines()):
            kind, value = operation["key"], operation["value"]
            if kind == "header":
                title = value["summary"]
                if value.get("parentCommit", head) != head:
                    raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            elif kind == "file":
                content = base64.b64decode(value["content"])
                files[value["path"]] = File(content, len(content))
            else:
                digest = value["oid"]
                files[value["path"]] = File(b"", len(self.server.objects[digest]), digest)
        self.repository.refs[f"refs/heads/{branch}"] = oid = self.repository.add(
            Commit(files, head, title)
        )
        return {"commitOid": oid, "commitUrl": f"{self.server.url}/{self.repository.name}/commit/{oid}"}

    @route("POST", API + "/super-squash/(?P<branch>[^/]+)")
    def squash(self, branch):
        made = Commit(self.repository.files(branch), None, self.json()["message"])
        self.repository.refs[f"refs/heads/{branch}"] = self.repository.add(made)
        self.repository.prune()

    @route("GET", API + "/lfs-files")
    def list_large_files(self):
        # files are deleted by their "fileOid"; of "oid", nothing says that it is a digest of the content
        about = {"ref": "main", "pushedAt": DATE}
        return [
            {"fileOid": digest, "oid": digest[::-1], "filename": digest, "size": len(content)} | about
            for digest, content in self.server.objects.items()
        ]

    @route("POST", API + "/lfs-files/batch")
    def delete_large_files(self):
        for digest in self.json()["deletions"]["sha"]:
            del self.server.objects[digest]

    @route("GET", f"/{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
    def download(self, revision, path):
        oid = self.repository.resolve(revision)
        content = self.server.read(self.repository.name, path, oid)
        if content is None:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        etag = f'"{self.repository.files(oid)[path].oid}"'
        return content, 200, {"X-Repo-Commit": oid, "ETag": etag}

    def respond(self):
        self.body = self.receive()
        fault = self.server.next_fault(f"{self.command} {self.path}")
        reply = self.answer() if fault is None or fault.after else None
        if fault is None:
            self.send(*reply)
        elif fault.status is None:
            self.close_connection = True
        else:
            self.send(*Refusal(fault.status, "Internal Error").reply)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = respond

    def answer(self):
        try:
            with self.server.lock:
                data = self.dispatch()
        except Refusal as refusal:
            return refusal.reply
        return data if isinstance(data, tuple) else (json.dumps(data).encode(), 200, {})

    def dispatch(self):
        if self.token == "hf_expired":
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

    def receive(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def send(self, body, status, headers):
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class Hub(ThreadingTCPServer):
    """What is stored, what was asked (`log`), and what shall fail."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = "http://{}:{}".format(*self.server_address)
        self.repos: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # large files by digest
        self.log, self.faults = [], []
        self.lock = threading.RLock()
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.thread.join()
        self.server_close()

    def fail(self, match, times=1, status=500, after=False):
        """Answer the next requests whose "METHOD path" matches with an error, `after` obeying or not."""
        self.faults.append(SimpleNamespace(match=match, times=times, status=status, after=after))

    def cut(self, match, times=1, after=False):
        """Hang up at the next requests that match, `after` obeying or not."""
        self.fail(match, times, None, after)

    def next_fault(self, line):
        with self.lock:
            self.log.append(line)
            fault = next((one for one in self.faults if one.times and re.search(one.match, line)), None)
            if fault is not None:
                fault.times -= 1
            return fault

    def find(self, name, token, reading):
        """Return a repository if the token may read or change it."""
        repository, known = self.repos.get(name), token == TOKEN
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
        return file and (self.objects.get(file.sha256) if file.sha256 else file.content)


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

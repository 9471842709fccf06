"""The command line of the system's ssh, the program that it starts on the host, and what ssh's failures mean.

What ssh is asked to run is always the same text: a short shell script in single quotes, of characters that mean the
same to every login shell. It finds a Python that will do, or takes the one that the first line of its input names, and
has it run the source that follows: the modules of deploy/ssh/host, loaded under their own names.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

from deploy.ssh.hosts import Host

HOST_PACKAGE = "deploy.ssh.host"
MODULES = ("orders", "processes", "files", "environment", "supervisors", "connection", "main")
"""In this order each finds what it imports."""
PYTHONS = "python3 python3.14 python3.13 python3.12 python3.11 /usr/local/bin/python3 /usr/bin/python3"
MAX_PYTHON_CHARS = 1000

_SCRIPT = f"""\
IFS= read -r wanted || exit 1; \
if [ -n "$wanted" ]; then set -- "$wanted"; else set -- {PYTHONS}; fi; \
for python in "$@"; do \
if "$python" -I -c "import sys; sys.exit(sys.version_info < (3, 11))" </dev/null >/dev/null 2>&1; then \
exec "$python" -I -c "import sys; exec(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))"; fi; done; \
for python in "$@"; do echo "$python: $("$python" --version 2>&1 </dev/null)" >&2; done; exit 87"""
REMOTE_COMMAND = f"exec /bin/sh -c '{_SCRIPT}'"

_OPTIONS = {
    "BatchMode": "yes",  # no questions: nobody is there to answer for a thousand hosts
    "ServerAliveInterval": "15",
    "ServerAliveCountMax": "4",
    "ControlMaster": "no",  # a master that stays would hold our end of standard error
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "LogLevel": "ERROR",
}

_FINAL = (
    "permission denied",
    "host key verification failed",
    "remote host identification has changed",
    "too many authentication failures",
    "no matching host key",
    "name or service not known",
    "bad configuration option",
    "bad owner or permissions",
    "no such identity",
)
"""What ssh says when trying again won't help, in small letters."""


@dataclass(frozen=True, slots=True)
class SshSettings:
    """`config`: a file instead of ~/.ssh/config, "" for that. `options`: further ones of ssh_config(5), as Name=value;
    the first given counts, so they are before ours. `connect_s`: for the connection to be made."""

    program: str = "ssh"
    config: str = ""
    options: tuple[str, ...] = ()
    connect_s: int = 15


def ssh_words(host: Host, settings: SshSettings) -> list[str]:
    """The command line, a word each; no shell sees it on this side."""
    words = [settings.program]
    if settings.config:
        words += ["-F", settings.config]
    for option in settings.options:
        words += ["-o", option]
    for name, value in _OPTIONS.items():
        words += ["-o", f"{name}={value}"]
    words += ["-o", f"ConnectTimeout={settings.connect_s}"]
    if host.port:
        words += ["-p", str(host.port)]
    if host.user:
        words += ["-l", host.user]
    return [*words, "--", host.host, REMOTE_COMMAND]


def opening(python: str) -> bytes:
    """What the remote command reads first: the Python wanted ("" for any), and the source to run.
    Raises ValueError for a path that is no line."""
    if len(python) > MAX_PYTHON_CHARS or any(character < " " for character in python):
        raise ValueError(f"expected the path of a Python, found {python[:100]!r}")
    source = program()
    return b"%s\n%d\n%s" % (python.encode(), len(source), source)


def program() -> bytes:
    """Python source that runs the modules of deploy/ssh/host where no package of ours is."""
    folder = resources.files(HOST_PACKAGE)
    sources = {name: (folder / f"{name}.py").read_text("utf-8") for name in MODULES}
    packages = HOST_PACKAGE.split(".")
    above = [".".join(packages[: depth + 1]) for depth in range(len(packages))]
    return f"""\
import sys, types
def load(name, source):
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = []
    exec(compile(source, "<" + name + ">", "exec"), module.__dict__)
    package, _, last = name.rpartition(".")
    if package:
        setattr(sys.modules[package], last, module)
for name in {above!r}:
    load(name, "")
for name, source in {sources!r}.items():
    load("{HOST_PACKAGE}." + name, source)
sys.modules["{HOST_PACKAGE}.main"].main()
""".encode()


def may_pass(errors: str) -> bool:
    """Whether a connection that failed so may succeed when it is tried again. `errors`: what ssh wrote."""
    small = errors.lower()
    return not any(text in small for text in _FINAL)

"""Network namespaces: made, given an address, entered. Needs root (CAP_SYS_ADMIN, CAP_NET_ADMIN) and /dev/net/tun.

Theory of operation. A namespace is made by leaving the one this thread is in (unshare) and lives as long as something
holds it: a process in it, or the descriptor `Namespace.place`. It gets two interfaces: lo, and a TUN device whose other
end is the descriptor `Namespace.tap`: every packet that leaves the namespace is read from it, and what is written to it
arrives there. So the network between namespaces is whatever whoever holds the taps makes of it (switch.py); nothing of
it touches the network of this machine, and all is gone with the last descriptor.

Why not links between namespaces with queueing disciplines (veth, netem)? Kernels without netem are common, this
mechanism does loss, one-way loss, delay, jitter and bandwidth alike, and changes all of them at once.

Only ioctls and two system calls: Python 3.11 has no setns, and no program (ip, tc) is needed. Only the calling thread
is moved, so callers have one thread (the keeper has).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Interface

CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
SIOCGIFFLAGS, SIOCSIFFLAGS = 0x8913, 0x8914
SIOCSIFADDR, SIOCSIFNETMASK, SIOCSIFMTU = 0x8916, 0x891C, 0x8922
IFF_UP = 0x1
DEVICE = "net0"
MTU_BYTES = 16_384
"""Large, as every packet costs the switch as much whatever its size; not so large that a narrow link would carry a few
packets a second."""
PROBE_WAIT_S = 10.0
MAX_REASON = 300
_libc = ctypes.CDLL(None, use_errno=True)


class NoRight(Exception):
    """Namespaces can't be made here, and why."""


@dataclass(frozen=True, slots=True)
class Namespace:
    """`place`: names it, for `entered`. `tap`: the other end of its network device. Both are descriptors."""

    place: int
    tap: int

    def close(self) -> None:
        os.close(self.place)
        os.close(self.tap)


def make(address: IPv4Interface) -> Namespace:
    """A new namespace whose device has this address; everything in its network is behind the tap. Raises NoRight."""
    try:
        with _own() as here:
            try:
                _call("unshare", CLONE_NEWNET)
                place = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    return Namespace(place, _device(address))
                except BaseException:
                    os.close(place)
                    raise
            finally:
                _call("setns", here, CLONE_NEWNET)
    except OSError as error:
        raise NoRight(
            f"network namespaces can't be made here ({error.strerror}: {error.filename}):"
            " expected root and /dev/net/tun; where they can't be had, take --network proxy"
        ) from None


@contextlib.contextmanager
def entered(place: int) -> Iterator[None]:
    """What is forked or opened in the block is in that namespace, for good; this thread comes back. Raises OSError."""
    with _own() as here:
        _call("setns", place, CLONE_NEWNET)
        try:
            yield
        finally:
            _call("setns", here, CLONE_NEWNET)


def why_not() -> str:
    """Why namespaces can't be made here; empty when they can. Tried in a process of its own."""
    probe = subprocess.run(
        [sys.executable, "-m", __name__], capture_output=True, text=True, timeout=PROBE_WAIT_S, check=False
    )
    return "" if probe.returncode == 0 else probe.stderr.strip()[-MAX_REASON:]


@contextlib.contextmanager
def _own() -> Iterator[int]:
    """The namespace of this thread, as a descriptor."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield here
    finally:
        os.close(here)


def _call(name: str, *arguments: int) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


def _device(address: IPv4Interface) -> int:
    """In the namespace that this thread is in: lo up, and a device with `address`, whose tap is answered."""
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), IFF_TUN | IFF_NO_PI))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            _up(control, "lo")
            _set(control, SIOCSIFADDR, _ip(address.ip.packed))
            _set(control, SIOCSIFNETMASK, _ip(address.netmask.packed))
            _set(control, SIOCSIFMTU, struct.pack("i", MTU_BYTES))
            _up(control, DEVICE)
    except BaseException:
        os.close(tap)
        raise
    return tap


def _ip(packed: bytes) -> bytes:
    return struct.pack("=HH4s8x", socket.AF_INET, 0, packed)


def _set(control: socket.socket, request: int, value: bytes, device: str = DEVICE) -> bytes:
    return fcntl.ioctl(control, request, struct.pack("16s24s", device.encode(), value))


def _up(control: socket.socket, device: str) -> None:
    (flags,) = struct.unpack_from("=H", _set(control, SIOCGIFFLAGS, b"", device), 16)
    _set(control, SIOCSIFFLAGS, struct.pack("=H", flags | IFF_UP), device)


def main() -> None:
    """Whether one can be made; else the exit code is 1, and why not is on standard error."""
    try:
        made = make(IPv4Interface("10.91.0.1/16"))
    except NoRight as refused:
        sys.exit(str(refused))
    made.close()


if __name__ == "__main__":
    main()

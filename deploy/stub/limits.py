"""Every limit that a boot stub keeps, named with its unit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StubSettings:
    # beats
    beat_s: float = 5.0
    """From a boot stub to each parent that has managents there."""
    change_s: float = 0.05
    """After a change the parent hears of it so soon; what changes meanwhile goes with it."""

    # bounds of the boot stub
    max_managents: int = 20_000
    max_calls: int = 1_000
    """Commands under way in one boot stub; one more is answered "running", which makes its sender ask again."""
    max_inspections: int = 1_000
    """`InspectCall`s under way; one more is dropped, and its sender asks again."""
    kept_answers: int = 8
    """Of the latest calls, for each managent: a call that is repeated is not carried out again."""
    kept_forgotten: int = 20_000
    """Managents that are gone, of which it is still known which (epoch, attempt) was the last."""

    # installation
    install_s: float = 300.0
    """For an installation program, or the uninstalling, to end; then it is killed."""
    resolve_s: float = 120.0
    """For the repository and all references to be asked (they have bounds of their own, which are shorter)."""
    installs: int = 8
    """Installation programs that run at once in one process."""
    unpacked_bytes: int = 4 << 30
    """What the archives of one managent may unpack to."""
    code_bytes: int = 4 << 30
    """What all its code references may have."""

    # programs
    log_bytes: int = 1 << 20
    """Kept of a program's output, and of an installation's; the older half goes first."""
    log_look_s: float = 10.0
    kill_s: float = 10.0
    """For the processes of a managent to be gone after KILL."""
    freeze_s: float = 5.0
    """For a process group to stand still after SIGSTOP."""

    # BMP
    hello_s: float = 30.0
    """For a program with control "bmp" to say hello after its start."""
    bmp_s: float = 30.0
    """For a program to do what it was told: activate, deactivate."""

    # classes
    class_s: float = 30.0
    """For a method of a Python class in the boot stub to return."""

    register_min_s: float = 0.5
    register_max_s: float = 60.0
    """Between tries of registering in the directory."""

"""Every limit of initiators, named with its unit. One value for a whole deployment; the defaults suit 10,000 managents
on hundreds of boot stubs.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    # boot stubs
    beat_s: float = 5.0
    """A boot stub tells an initiator of its managents this often; a child initiator reports to its parent."""
    beats_missed: int = 3
    """After so many of them a boot stub is asked."""
    stub_lost_s: float = 10.0
    """What has not answered for so long from then on is lost: its managents are unreachable, or are placed
    elsewhere."""
    lease_margin_s: float = 5.0
    """On top of `lease_s`, before managents of a lost boot stub are placed elsewhere: longer than any message is under
    way, and than two clocks differ in measuring a lease."""
    doubt_s: float = 1.0
    """What a beat says of a managent within so long after an answer about it may be older than that: it is not
    heard."""
    lost_ping_s: float = 30.0
    """A lost boot stub is asked this often whether it is back."""

    # calls to boot stubs
    command_repeat_s: float = 3.0
    command_repeat_max_s: float = 20.0
    """A command that was not answered is repeated after the first, then after twice as long, up to the second. One that
    is "running" is asked after at the second. Messages are seldom lost, and where thousands of managents start at once
    each of them takes long: to ask after all of them every second makes that longer."""
    call_repeat_s: float = 1.0
    call_repeat_max_s: float = 8.0
    """The same for all other calls."""
    give_up_s: float = 60.0
    """A boot stub that lives, but does not answer a call for so long, is taken not to answer it at all."""
    run_limit_s: float = 3600.0
    """A call that is "running" for so long has failed."""
    retry_min_s: float = 0.5
    retry_max_s: float = 30.0
    """Before a command that failed is tried again: the first, then twice as long, up to the second."""
    max_commands: int = 60
    """Commands for one managent in one rollout; more of them go round in circles."""

    # managents that end by themselves
    restart_min_s: float = 1.0
    restart_max_s: float = 60.0
    max_restarts: int = 5
    restart_window_s: float = 600.0
    """What ended by itself is started again, after a wait that doubles; at most so often in a window, then it
    failed."""

    # the table
    save_s: float = 3.0
    """Outcomes are written to the directory at most this often, and when a rollout settles."""
    directory_retry_s: float = 2.0
    """Before ZooKeeper is asked again after it could not be."""

    # the tree
    report_s: float = 0.5
    """An initiator reports changes to its parent at most this often; that it settled, at once."""
    problems: int = 20
    """How many a report names."""
    page_entries: int = 500
    page_s: float = 0.05
    """Answers to a command to a subtree are held back for so long, to fill a page."""
    window_pages: int = 32
    """Pages under way to one asker."""
    hop_margin_s: float = 0.5
    """A child initiator has this much less time to answer than its parent."""
    linger_s: float = 60.0
    """How long pages are kept after the end, for an asker who missed some."""
    max_gathers: int = 16
    """Commands to a subtree that are carried out at a time."""

    @property
    def suspect_s(self) -> float:
        """Of silence, after which a boot stub is asked."""
        return self.beat_s * self.beats_missed

    @property
    def lost_s(self) -> float:
        """Of silence, after which it is lost."""
        return self.suspect_s + self.stub_lost_s

"""Discovery (HPL-2001-321, section 2.3): finding boot stubs, and finding the directory, by calls to a whole network.

    words.py      the four messages, and who believes which of them; pure
    group.py      where such calls go: a multicast group or a broadcast address, and the sockets for it
    listener.py   answers calls: a boot stub's, or one beside the directory
    asking.py     makes calls, and gathers the answers

All of it is off unless somebody says a group and an interface. The messages are sealed with the cluster's key, without
which there is no discovery at all: on a network everybody can call and answer.
"""

from __future__ import annotations

from deploy.discovery.asking import Discovered, NotFound, discover, find_directory
from deploy.discovery.group import BadGroup, Group, parse_group
from deploy.discovery.listener import Listener
from deploy.discovery.words import Ears, HearingCounters

__all__ = [
    "BadGroup",
    "Discovered",
    "Ears",
    "Group",
    "HearingCounters",
    "Listener",
    "NotFound",
    "discover",
    "find_directory",
    "parse_group",
]

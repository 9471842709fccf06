"""Coordination: trees, sessions, election. Knows nothing of instances or images.

Read `tree.py` first (the port), then `paths.py` (where everything is), `election.py` (who leads), and the port's two
implementations, held to one contract suite: `memory.py` and `memory_session.py` in memory, for simulations; and on a
real ensemble `session_tree.py` (what waits for what), over `link.py` (the socket, and which server), over
`connection.py` (one connection, without I/O), over `kazoo_wire.py` (the wire format, by kazoo's classes).
"""

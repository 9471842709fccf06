"""Coordination: trees, sessions, election. Knows nothing of instances or images.

Read `tree.py` first (the port), then `paths.py` (where everything is), `election.py` (who leads), and the port's two
implementations, held to one contract suite: `kazoo_tree.py` on a real ensemble, `memory.py` and `memory_session.py` in
memory, for simulations.
"""

"""Coordination: trees, sessions, election. Knows nothing of instances or images.

Read `tree.py` first (the port), then `paths.py` (where everything is), `election.py` (who leads), and
`kazoo_tree.py` (the port on a real ensemble).
"""

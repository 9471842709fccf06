"""A ZooKeeper-coordinated peer-to-peer provisioning fabric.

Read `commands.py` and `messages.py` (what peers say), `effects.py` (what a role asks of the world),
`roles/coordinator.py` (the flow of a request, steps 4 to 6 of the SmartCloud paper) and `roles/compute.py` (steps 7 to
9), in this order.
"""

__version__ = "0.1.0"

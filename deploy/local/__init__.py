"""The local fabric, brought up as a site of machines would be: by recursive deployment.

    keeper (fabric.local.keeper, with the crew of crew.py)
     ├─ ZooKeeper, eyes, API     as in fabric.local
     ├─ repository               serves <folder>/repository: a few patterns describe every agent (description.py)
     ├─ bootstubs1 …             one boot stub for each node, each standing for a machine; a process for each rack
     ├─ initiator                deploys /site, and leaves when all of it is active
     └─ agent …                  forked by the keeper when a boot stub starts it (launcher.py)

The keeper starts repository and boot stubs again when they end. Agents and instances run on meanwhile; new boot stubs
adopt them. An agent that ends is started again by its boot stub, with `fabric up --restart`.

/site is an initiator, with one child for each rack; /site/r1 is an initiator, with one child on each boot stub of its
rack; /site/r1/r1c01 is an agent. What an agent is called in the fabric, and in which rack it is, follows from its path
(deploy.agent).
"""

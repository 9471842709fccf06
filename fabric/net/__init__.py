"""The network between the processes of a local fabric, with faults on demand: cuts, one-way loss, delay, jitter, narrow
links.

What is wrong is data (rules.py); when a piece of data may pass is arithmetic (pacing.py). Two mechanisms obey:

    namespaces.py + switch.py   each process in a network namespace of its own, all joined by a switch that is a process
                                of ours. Packets are lost and late as on a real network. Needs root and /dev/net/tun.
    proxy.py                    everybody on this machine's loopback, and a TCP proxy in front of every address. For
                                whoever has no rights.

orders.py carries the rules to whichever it is. Nothing here knows what a fabric is; fabric.local.network does.
"""

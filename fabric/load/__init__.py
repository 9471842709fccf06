"""Load: requests as users make them, and what became of them.

    history.py     every request, every attempt at it, every answer, with times
    http.py        little CPU an exchange
    asking.py      one request: tried until it is answered, then followed to its end
    stock.py       what stands, and what to ask for next
    generator.py   when it is asked: at a rate (open loop), or by a number of clients (closed loop)

`fabric chaos` has its load from these, and so has `fabric bench load`, which is made of

    plan.py        what is to be run, against which fabric
    session.py     one run from begin to end      measured.py   what happened in its window
    place.py       the fabric: brought up for the run, or one that is there already
    preparing.py   image and nodes before the run; what is left, and the audit, after it
    meters.py      CPU and memory by role, ZooKeeper's own counters      traces.py  steps of sampled requests
    latency.py     percentiles, histograms        booking.py    whether any node ran more than it has
    results.py     the result, as a file has it   comparing.py, plotting.py    two of them; one as a picture
    machine.py     machine and commit, for results
"""

"""`fabric chaos`: breaks a local fabric for real, under load, and judges whether the promises of the design held.

    script.py      the scenario language: its words; reading.py and writing.py: lines <-> a Scenario
    targets.py     whom a fault hits
    named.py       the scenarios that have a name: scenarios/*.txt
    dice.py        seed -> a scenario of random faults
    runner.py      one run: up, load, faults, heal, wait until all is at rest, judge
    schedule.py    when each fault is done and undone
    stage.py       what faults act on, and what the judge must know of them to be fair
    load.py        requests at a rate, each followed to its end         ──> history.py: every request and answer
    watch.py       looks at processes and members while it runs         ──> Samples
    looking.py     looks at everything when it is over                  ──> World
    mounts.py      small disks for nodes, in a mount namespace of the run
    faults/        every kind of fault: do, undo, what right it needs   ──> Deeds
    watching.py    pure: Samples -> findings (what is only wrong for a while: doubles, too much on a node, guesses)
    judge.py       pure: history and World -> findings (what is wrong in the end)
    scorecard.py   verdict and figures, as table and JSON
    matrix.py      every role killed at every step of the flow; its cells as data: cells.py

Theory of operation. Everything that is done goes through what any operator has: the control socket and the folder of a
fabric that is up (`fabric up`), its API, its ZooKeeper. Nothing is asked of the processes that are judged but what they
tell every user; what runs is seen from outside, in /proc, and what is stored is read and hashed. So the judge does not
believe the fabric, and works on one that it did not start (`--dir`).

The promises are those of the design, by these names: see verdict.py.
"""

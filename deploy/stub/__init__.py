"""The boot stub (HPL-2001-321, 2.1, 3.1-3.3, 4.1, 4.3): the protocol handler on every machine that may host managents.

The state machine, which does nothing by itself (no I/O, no clock):

machine.py      what is heard -> what is to be done; commands, answers, memory
verbs.py        each command of Table 1 as a row of steps
managent.py     what is known of one managent, and written down
parents.py      beats to initiators, and leases
inspections.py  what is there compared with what the repository would give
effects.py      the steps and other effects, and their results
limits.py       every limit

What carries it out:

assembly.py     resolver, initiators, directory and discovery, put together for a process
process.py      one process that hosts one boot stub, or many
host.py         one boot stub: bus, journal, timer
world.py        each step as a task
installer.py    installation code: loaded, run, reversed
  code.py, unpacking.py, bounded.py, homes.py    formats; archives; programs with bounds; folders
programs.py     what runs: started, switched, stopped, adopted
  starting.py, launcher.py, processes.py         three ways to the start command; making processes; signals, pidfds
  bmp_server.py                                  the boot stub's side of BMP (the programs' is deploy.bmp)
  classes.py, pool.py                            Python classes, and threads for their methods
initiators.py   initiators that live here
shared.py       what all boot stubs of a process have once
settings.py     what one is told when it starts
"""

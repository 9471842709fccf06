"""A local fabric: agents, API and ZooKeeper as real processes of this machine, and nothing of them left behind.

    fabric up (front)     reads the flags, shows progress, holds the leash: a pipe into the keeper
     └─ keeper            a session of its own; starts, watches, restarts on request, takes down (keeper.py)
         ├─ ZooKeeper     unless the user named an ensemble
         ├─ eyes          reads ZooKeeper and /readyz for the keeper, which must stay free of threads (eyes.py)
         ├─ API
         ├─ agent …       forked from the keeper, which has imported everything once (nursery.py)
         └─ supervisor …  of each agent's instances; they outlive their agents, but not the keeper

Who dies takes along what depends on it, also by kill -9:

- the front dies: the leash ends (unless `--detach`), the keeper takes everything down;
- the keeper dies: the lifeline ends, a pipe whose only writing end the keeper holds. Agents, API and eyes leave (the
  kernel kills them too: PR_SET_PDEATHSIG), supervisors kill their instances and leave, ZooKeeper is killed by the
  kernel. The front, or the next `fabric up` or `fabric down`, removes the files (aftermath.py);
- an agent dies: nothing else does. Its instances run on and are adopted when it is started again.

Read folder.py (where everything is), keeper.py, then front.py.
"""

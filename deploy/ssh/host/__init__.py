"""What runs on the host: sent as source over the connection, so it imports the standard library and itself alone.

    orders.py        what is ordered, and what is said: both ends import it
    connection.py    the operator, as the host sees it: the order, the bundle, and the end of both
    main.py          takes the steps, says how each went
    files.py         the folder: written atomically, and only what differs
    environment.py   a virtual environment with the bundle
    supervisors.py   what keeps the boot stub running: systemd, or a process of its own with a pid file
    processes.py     what /proc knows: whether a process is the one that was started, what listens, what mentions what

Every step looks before it acts, so running all of them again changes only what differs.
"""

"""The first step on real machines: boot stubs installed and started on hosts over ssh.

    hosts.py      the file that names the hosts
    bundle.py     what is copied: this project's packages as a wheel, and where wanted the packages they need
    command.py    the command line of the system's ssh, and what its failures mean
    talk.py       one host: a connection, an order, what the host says to it
    fleet.py      all hosts: bounded parallelism, retries, exact sets
    host/         what runs on the host: sent as source over the connection, the standard library alone

The system's ssh client is used, so that what an operator has set up works as it is: ~/.ssh/config, agents, jump hosts,
known hosts. A host needs sshd and Python; nothing is put there before. One connection a host: a constant command line
starts Python, everything else travels over its standard input: the source, the order, the secret, the bundle. So no
name is ever quoted for a shell, and no secret is seen in a list of processes.
"""

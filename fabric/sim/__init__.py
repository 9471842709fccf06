"""The simulated world: the fabric's roles, unchanged, under virtual time, with faults drawn from a seed."""

"""Content-addressed images: held whole by storage agents, fetched by compute agents from several of them at once,
and passed on within a rack.

    manifest    an image is the list of the hashes of its chunks; its digest is the hash of that list
    protocol    how chunks and manifests travel, on an endpoint of their own (wire: on a TCP connection; stretch: from
                files, by the kernel)
    store       a holder's chunks and manifests on disk (ledger: what refers to what; shelf: the files)
    server      a thread that serves chunks (callers: one connection; parking: who waits; desk: for whom it works;
                intake: what only a store is asked)
    transfer    which chunk to ask of whom next, without sockets or a clock
    mates       nodes of a rack that fetch the same: whom to ask within the rack (pieces: what a node gives to them)
    fetch       an image into a file, from several holders (links: the connections; company: its mates); replicate:
                into a store
    push        an upload to holders in different racks
    archive     what an image may be, and unpacking it (tarwalk, tarstream, inflate)
    placing     where the bytes of an image go as they come (hollow: blobs without the bodies that are elsewhere)
    cache       a compute node's bounded set of unpacked images
    errors      what can go wrong, split by whose fault it is

Everything here blocks and is meant for threads; nothing knows of agents, roles or the control bus.
"""

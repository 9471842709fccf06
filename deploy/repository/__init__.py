"""Repositories (HPL-2001-321, 2.2, 4.2): the server, and what boot stubs, initiators and planners ask it with.

digests.py      blake3 and sha256 of what comes in pieces
files.py        files read whole, digested, and held as they were
folder.py       a directory with repository.xml and documents: what it says now
check.py        `fabric repository check`
serving.py      HTTP/1.1 connections of a server: bounds, keep-alive, bodies from memory and files
server.py       what is asked and answered: BRP, the information, documents
process.py      `fabric repository serve`
client.py       HTTP/1.1 as a client: kept connections, redirects, bounds, half answers
content.py      contents by digest, on disk and bounded; files stay while somebody uses them
images.py       image://name: from the fabric's own two holders
fetcher.py      what is behind a reference: http, file, image; retries
resolver.py     deploy.resolved.Resolver: BRP, fetch, merge
description.py  a whole description, for those who want to know of all its managents
"""

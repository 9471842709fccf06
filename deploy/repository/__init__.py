"""Repositories (HPL-2001-321, 2.2, 4.2): the server, and what boot stubs, initiators and planners ask it with.

folder.py       a directory with repository.xml and documents: what it says now, checked and digested
serving.py      HTTP/1.1 connections of a server: bounds, keep-alive, bodies from memory and files
server.py       what is asked and answered: BRP, the information, documents
check.py        `fabric repository check`
client.py       HTTP/1.1 as a client: kept connections, redirects, bounds, half answers
content.py      content by digest, on disk and bounded; files stay while somebody uses them
fetcher.py      what is behind a reference: http, file, image; retries
images.py       image://name: from the fabric's own two holders
resolver.py     deploy.resolved.Resolver: BRP, fetch, merge
description.py  a whole description, for those who want to know of all its managents
"""

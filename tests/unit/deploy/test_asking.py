"""Asking a top initiator: an answer that never ends is left alone after the time that was allowed."""

from __future__ import annotations

import asyncio

import pytest

from deploy import asking
from deploy.asking import Asker
from deploy.messages import AnyDeployMessage, Entry, TreeCall, TreePage, deploy_codec
from fabric.runtime.bus import Bus, new_context

KEY = b"k" * 32
BIND = "tcp://127.0.0.1:0"
PAUSE_S = 0.01


def test_an_answer_that_never_ends_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "LAST_WORD_S", 0.2)
    context = new_context()

    async def scenario() -> None:
        pages = 0

        def talk(sender: str, call: TreeCall) -> None:
            nonlocal pages
            entry = Entry(f"/n{pages}", "s1", "installed", "active", "done")
            top.send(sender, TreePage(call.call, call.to, "", pages, (entry,), last=False))
            pages += 1
            asyncio.get_running_loop().call_later(PAUSE_S, talk, sender, call)

        def heard(sender: str, message: AnyDeployMessage) -> None:
            if isinstance(message, TreeCall) and not pages:
                talk(sender, message)

        top: Bus[AnyDeployMessage] = Bus(context, deploy_codec(KEY), "a" * 32, BIND, on_message=heard)
        asker = Asker(context, KEY, BIND)
        try:
            async with asyncio.timeout(10):
                gathering = await asker.gather(top.address, "/**", "status", 0.2)
            assert not gathering.whole
            assert len(gathering.entries) > 1
        finally:
            asker.close()
            top.close()

    asyncio.run(scenario())
    context.term()

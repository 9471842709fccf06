"""Steps 4 to 6, first half: discussion, placement, reservation; until every ordinal has a place or none can be had.

        discuss (racks, agents) -> place (pure) -> reserve (try) -+-> all granted: done
            ^                        ^                            |
            |                        '-- some refused, because ---+   (other offers are left: place those again)
            |                            another request was faster
            '---- nothing left to place on: wait a little, ask anew

The first discussion of a search is a short one (`Settings.discussion`): rack leaders answer for the best of their
agents, by what they know of them. Whatever it leaves without a place is asked of every agent of every rack.

Competing requests. A request that finds too little, while others hold reservations that are not confirmed yet, must not
fail (those may be given back), and must not wait with its own reservations in hand for one that waits for them: so the
*older* request (smaller ticket) keeps what it has and waits, the younger gives its own back, waits, and asks anew. The
oldest always gets through, so all that fit together get through; who does not fit learns it when nobody holds anything
that could still be given back. All of it is bounded by `place_deadline_s`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from fabric.commands import AskOffer, Cancel, Offer, Reserve, Reserved
from fabric.ordinals import format_ordinals, parse_ordinals
from fabric.resources import ZERO
from fabric.roles.advice import advise, case_of
from fabric.roles.calls import Gathered
from fabric.roles.charge import Charge
from fabric.roles.known import how_many
from fabric.roles.leaders import nearest
from fabric.roles.placement import NodeOffer, Placement, Wish, deal, explain, node_offer, place
from fabric.roles.plans import Place

MAX_WAITS = 3
"""How often a search to which fewer are of use waits for others' reservations, and for answers."""


@dataclass(frozen=True, slots=True)
class Reservations:
    """`places`: ordinal -> where. Fewer than wanted, or none, when no more could be had: then `reasons` say why.
    `newcomers`: nodes that registered after the coordinator's claim, and so take nothing under it, might have room."""

    places: dict[int, Place]
    reasons: tuple[str, ...]
    newcomers: bool = False


class Reserving:
    """One search for places. `need` is the least number of them that is of use (`min_count`, less what runs)."""

    def __init__(
        self,
        charge: Charge,
        ordinals: tuple[int, ...],
        need: int,
        used: dict[Place, int],
        exclude: frozenset[str],
        done: Callable[[float, Reservations], None],
    ) -> None:
        self._charge = charge
        self._missing = set(ordinals)
        self._need = need
        self._used = used
        self._exclude = exclude
        self._done = done
        self._places: dict[int, Place] = {}
        self._touched: set[Place] = set()
        self._offers: dict[str, NodeOffer] = {}
        self._silent: tuple[str, ...] = ()
        self._rounds = 0
        self._deadline = 0.0
        self._began = 0.0
        self._asked_at = 0.0
        self._again_at: float | None = None
        self._known = False
        """The offers are of what rack leaders know of the best of their agents: when they fall short, all are asked."""
        self._newcomers = False
        self._waits = 0
        self._unsure: dict[Place, float] = {}
        """Nodes that did not answer a Reserve may hold reservations of ours until then; not those that are gone."""

    @property
    def touched(self) -> set[Place]:
        """Where there may be reservations of this search."""
        return set(self._touched)

    def begin(self, now: float) -> None:
        self._began = now
        self._charge.recorder.placings.begin(self._wish())
        self._deadline = now + self._charge.settings.place_deadline_s
        self._discuss(now, known=self._charge.settings.discussion == "known")

    def tick(self, now: float) -> None:
        if self._again_at is not None and now >= self._again_at and not self._charge.held:
            self._again_at = None
            self._discuss(now)

    @property
    def next_deadline(self) -> float | None:
        return None if self._charge.held else self._again_at

    # --- discussion ----------------------------------------------------------------------------------------------

    def _discuss(self, now: float, known: bool = False) -> None:
        charge, record, wanted = self._charge, self._charge.record, len(self._missing)
        self._rounds = 0
        self._asked_at = now
        self._known = known
        racks, best = None, 0
        if known:
            racks = self._racks_for(wanted)
            best = how_many(record.policy, wanted, len(racks), len(self._used) + len(self._exclude))
        ask = AskOffer(record.id, record.spec.resources, wanted, charge.keeper.ticket, best, record.policy)
        charge.ask_racks(now, ask, charge.settings.offer_wait_s, self._discussed, racks)

    def _racks_for(self, wanted: int) -> tuple[str, ...]:
        """One for each ordinal would spread them as well as all racks do; a pack looks for the fullest of all nodes."""
        racks = self._charge.calls.racks
        if self._charge.record.policy == "pack":
            return racks
        return tuple(nearest(self._charge.record.id, racks, max(wanted, self._charge.settings.discussion_racks)))

    def _discussed(self, now: float, gathered: Gathered) -> None:
        answers = self._charge.results(now, gathered)
        if answers is None:
            return
        epoch = self._charge.epoch
        self._newcomers = any(
            isinstance(answer, Offer) and answer.registered > epoch and answer.count for _, answer in answers
        )
        has = Counter(self._places.values())
        has.update(self._used)
        self._offers = {
            node: node_offer(node, rack, answer, has[node, rack])
            for (node, rack), answer in answers
            if isinstance(answer, Offer) and node not in self._exclude and answer.registered <= epoch
        }
        for (node, rack), count in has.items():  # max_per_rack is also about those that are not heard of now
            self._offers.setdefault(node, NodeOffer(node, rack, 0, count))
        # One that went away in the middle may only be restarting: like a silent one it is worth another round.
        silent = [f"node {node}" for reply in gathered.replies for node in (*reply.silent, *reply.absent)]
        self._silent = (*(f"rack {rack}" for rack in gathered.silent_racks), *silent)
        if not self._known:  # all were asked: who neither answers nor is missed by a leader is gone
            here = {where for where, _ in answers}
            here.update((node, reply.rack) for reply in gathered.replies for node in reply.silent)
            told = {reply.rack for reply in gathered.replies}
            self._unsure = {where: at for where, at in self._unsure.items() if where in here or where[1] not in told}
        self._charge.recorder.discussed(self._asked_at, now, gathered, list(self._offers.values()), self._known)
        self._place(now)

    # --- placement and reservation --------------------------------------------------------------------------------

    def _wish(self) -> Wish:
        record = self._charge.record
        return Wish(len(self._missing), record.policy, record.max_per_node, record.max_per_rack, record.id)

    def _place(self, now: float) -> None:
        offers = list(self._offers.values())
        placement = place(self._wish(), offers)
        self._charge.recorder.placings.placed(self._missing, offers, placement)
        if placement.short and self._known:
            self._discuss(now)
            return
        if placement.short and not self._content_with(now, placement):
            return
        self._reserve(now, placement)

    def _content_with(self, now: float, placement: Placement) -> bool:
        """Too few places for what is missing. True: reserve what there is. False: waiting, or at the end."""
        enough = len(self._places) + sum(one.count for one in placement.given) >= max(1, self._need)
        oldest = min((offer.oldest for offer in self._offers.values() if offer.held), default=0)
        if self._newcomers:
            self._give_back(now)
            self._finish(now, ())
            return False
        settings = self._charge.settings
        nobody = not any(offer.short for offer in self._offers.values()) and not self._exclude
        unsure = any(now < until for until in self._unsure.values())
        patient = self._need > 0 or self._waits < MAX_WAITS
        if now < self._deadline and patient and (oldest or self._silent or nobody or unsure):
            ours = self._charge.keeper.ticket
            if oldest and oldest < ours:
                self._give_back(now)
            self._charge.recorder.round(now, len(self._missing), 0, (), "waits for others' reservations or answers")
            mean_s = settings.contention_wait_s
            if not oldest:  # for who may be back: ask less and less often
                mean_s = min(mean_s * 4 * 2**self._waits, max(settings.retry_max_s, mean_s * 4))
            self._waits += 1
            self._again_at = now + mean_s * (0.5 + self._charge.rng.random())
            return False
        if enough:
            if placement.given:
                return True
            self._finish(now, self._why(0))
            return False
        reasons = self._why(max(1, self._need))
        self._give_back(now)
        nobody_left = "no compute agent is left to ask" if self._exclude else "no compute agent answered"
        self._finish(now, reasons or (nobody_left,))
        return False

    def _reserve(self, now: float, placement: Placement) -> None:
        charge = self._charge
        ttl_ms = int(charge.settings.reservation_ttl_s * 1000)
        asked = deal(self._missing, placement)
        self._touched.update(asked)
        self._rounds += 1
        step = charge.next_step()
        record = charge.record
        commands = [
            (
                where,
                Reserve(
                    record.id,
                    charge.epoch,
                    step,
                    charge.keeper.ticket,
                    record.spec.resources,
                    format_ordinals(ordinals),
                    ttl_ms,
                ),
            )
            for where, ordinals in asked.items()
        ]
        charge.ask_nodes(now, commands, lambda at, gathered: self._reserved(at, asked, gathered))

    def _reserved(self, now: float, asked: dict[Place, tuple[int, ...]], gathered: Gathered) -> None:
        charge = self._charge
        answers = charge.results(now, gathered)
        if answers is None:
            return
        charge.recorder.gathered(gathered)
        known = {where: answer for where, answer in answers if isinstance(answer, Reserved)}
        conflicts: list[str] = []
        lost: list[Place] = []
        won: set[int] = set()
        for where, ordinals in asked.items():
            node = where[0]
            answer = known.get(where)
            if answer is None:
                lost.append(where)
            granted = set(parse_ordinals(answer.granted)) & set(ordinals) if answer else set()
            for ordinal in granted:
                self._places[ordinal] = where
            self._missing -= granted
            won |= granted
            if len(granted) < len(ordinals):
                conflicts.append(f"{node}:{len(ordinals) - len(granted)}")
            offer = self._offers[node]
            self._offers[node] = replace(
                offer,
                count=answer.count if answer else 0,
                held=answer.held if answer else 0,
                oldest=answer.oldest if answer else 0,
                used=offer.used + len(granted),
                free=answer.free if answer else ZERO,
                holders=answer.holders if answer else (),
            )
        charge.recorder.placings.granted(asked, won)
        self._take_back(now, lost)
        total = sum(len(ordinals) for ordinals in asked.values())
        charge.recorder.round(now, total, len(self._places), conflicts)
        if not self._missing:
            self._finish(now, ())
        elif not conflicts:  # all that was asked came; the rest has no place, and that is enough for this request
            self._finish(now, self._why(0))
        elif self._rounds < charge.settings.max_rounds and any(one.count for one in self._offers.values()):
            self._place(now)
        else:
            self._again_at = now + charge.settings.contention_wait_s * (0.5 + charge.rng.random())
            if now >= self._deadline:
                self._again_at = None
                reasons = self._why(max(1, self._need))
                self._give_back(now)
                self._finish(now, ("others were faster until the deadline", *reasons))

    def _take_back(self, now: float, lost: list[Place]) -> None:
        """These did not answer: whether they reserved or not, nothing is counted on there, and they are told so."""
        if lost:
            self._unsure.update(dict.fromkeys(lost, now + self._charge.settings.reservation_ttl_s))
            for ordinal in [ordinal for ordinal, where in self._places.items() if where in lost]:
                del self._places[ordinal]
                self._missing.add(ordinal)
            cancel(self._charge, now, lost)

    def _give_back(self, now: float) -> None:
        """Cancel all reservations of this search: an answer is not waited for, their time to live does the rest."""
        self._missing |= set(self._places)
        self._places.clear()
        cancel(self._charge, now, self._touched)
        self._touched.clear()

    def _why(self, least: int) -> tuple[str, ...]:
        """What would do, and why no more fits. `least`: see `advice.case_of`."""
        wish, offers = self._wish(), list(self._offers.values())
        reserved = Counter(node for node, _rack in self._places.values())
        advice = advise(case_of(self._charge.record, wish, reserved, offers, least))
        return (*(one.sentence for one in advice), *explain(wish, offers, self._silent))

    def _finish(self, now: float, reasons: tuple[str, ...]) -> None:
        charge = self._charge
        conflicts = f", {self._rounds} rounds" if self._rounds > 1 else ""
        detail = f"{len(self._places)} reserved, {len(self._missing)} without a place{conflicts}"
        charge.recorder.span(6, self._asked_at, now, detail)
        self._done(now, Reservations(dict(self._places), reasons, self._newcomers and bool(self._missing)))


def cancel(charge: Charge, now: float, places: Iterable[Place]) -> None:
    """Give reservations on `places` back."""
    touched = sorted(places)
    if touched:
        command = Cancel(charge.record.id, charge.epoch, charge.next_step())
        charge.ask_nodes(now, [(where, command) for where in touched], lambda at, gathered: None)

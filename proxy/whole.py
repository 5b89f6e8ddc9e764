"""All workers as one proxy: each answers what the others ask of it, and asks them for what it shows."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pydantic import TypeAdapter

from proxy.admin.commands import Command
from proxy.admin.facts import Facts, Figures
from proxy.admin.observing import facts, figures
from proxy.admin.operations import carry_out_here
from proxy.admin.site import Site
from proxy.errors import WrongState
from proxy.observe.merging import ended, from_plain, merged, to_plain
from proxy.observe.snapshot import Snapshot
from proxy.processes.inherited import Place
from proxy.processes.peers import PATIENCE, Handler, PeerError, Peers
from proxy.session.sessions import worker_of
from proxy.tasks import spawn

log = logging.getLogger(__name__)

_SOON = 1.0
"""Seconds for a worker's snapshot: who asks for metrics or whether we are ready doesn't wait for one that hangs."""

_FACTS: TypeAdapter[Facts] = TypeAdapter(Facts)
_FIGURES: TypeAdapter[dict[str, Figures]] = TypeAdapter(dict[str, Figures])


class Whole:
    """The workers, as one of them sees them. `site` and `snapshot` are its own."""

    def __init__(
        self,
        place: Place,
        peers: Peers,
        site: Site,
        snapshot: Callable[[], Snapshot],
        take_batch: Callable[[bytes, int, list[int]], None],
    ) -> None:
        self._place = place
        self._peers = peers
        self._site = site
        self._own = snapshot
        self._take_batch = take_batch
        self._others = [number for number in place.numbers if number != place.number]
        # What the others told last, by number, each with when that process began; and what ended ones had counted.
        self._last: dict[int, tuple[float, Snapshot]] = {}
        self._past: list[Snapshot] = []
        self._began = time.time()

    @property
    def handlers(self) -> dict[str, Handler]:
        """Return what this worker answers."""
        return {
            "snapshot": self._tell_snapshot,
            "facts": self._tell_facts,
            "figures": self._tell_figures,
            "command": self._obey,
            "standing": self._tell_standing,
            "batch": self._hear_batch,
        }

    # -- metrics, health, the dashboard

    async def refresh(self) -> None:
        """Ask the others for their snapshots."""
        told = await self._all("snapshot", patience=_SOON)
        for number, answer in zip(self._others, told, strict=True):
            if isinstance(answer, dict):
                began, snapshot = answer["began"], from_plain(answer["snapshot"])
                known = self._last.get(number)
                if known is not None and known[0] != began:
                    self._past = [merged([*self._past, ended(known[1])])]
                self._last[number] = began, snapshot

    def snapshot(self) -> Snapshot:
        """Return the facts of all, as they were told last."""
        return merged([self._own(), *(snapshot for _, snapshot in self._last.values()), *self._past])

    def pass_on(self, rows: bytes, number: int, events: list[int]) -> None:
        """Show a batch of the access log to the worker that has the dashboard; it may be lost."""
        spawn(self._show(rows, number, list(events)), "show a batch to the dashboard")

    async def _show(self, rows: bytes, number: int, events: list[int]) -> None:
        try:
            await self._peers.ask(self._place.numbers[0], "batch", {"number": number, "events": events}, rows)
        except PeerError as error:
            log.debug("the dashboard misses %d records: %s", number, error)

    # -- the console

    async def facts(self, subject: str) -> list[Facts]:
        """Return what the other workers' SHOW `subject` is made of."""
        told = await self._all("facts", {"subject": subject})
        return [_FACTS.validate_python(each) for each in told if not isinstance(each, PeerError)]

    async def figures(self) -> list[dict[str, Figures]]:
        """Return what the other workers have done for each database."""
        told = await self._all("figures")
        return [_FIGURES.validate_python(each) for each in told if not isinstance(each, PeerError)]

    async def carry_out(self, command: Command) -> str:
        """Have all workers do what `command` says, and return when they have; raises ClientError.

        KILL_CLIENT is for the one that has the client; SHUTDOWN, who supervises the workers hears of one alone.
        """
        if command.verb == "kill_client":
            number = worker_of(int(command.argument))
            if number in self._others:
                return await self._one(number, command)
            return await carry_out_here(command, self._site)
        if command.verb == "shutdown" and command.argument != "wait_for_clients":
            return await carry_out_here(command, self._site)
        outcomes = await asyncio.gather(
            carry_out_here(command, self._site),
            *(self._one(number, command) for number in self._others),
            return_exceptions=True,
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return str(outcomes[0])

    async def _one(self, number: int, command: Command) -> str:
        about = {"verb": command.verb, "subject": command.subject, "argument": command.argument}
        try:
            return str(await self._peers.ask(number, "command", about, patience=None))
        except PeerError as error:
            log.warning("%s: a worker didn't answer: %s", command.summary, error)
            raise WrongState(f"not every worker has done so: {error}") from None

    async def follow(self) -> None:
        """Take over what the console has told the others: this worker may stand in for one that has died."""
        for number in self._others:
            try:
                standing = await self._peers.ask(number, "standing")
            except PeerError:
                continue
            self._site.paused = standing["everything"]
            self._site.gate.disabled.update(standing["disabled"])
            for name in standing["paused"]:
                if (served := self._site.served.get(name)) is not None and not served.cluster.paused:
                    served.cluster.pause(time.monotonic())
            return

    # -- answers

    async def _all(
        self, what: str, about: Mapping[str, object] = MappingProxyType({}), patience: float = PATIENCE
    ) -> Sequence[Any]:
        """Return what each of the others answers, or the PeerError."""

        async def one(number: int) -> Any:
            try:
                return await self._peers.ask(number, what, about, patience=patience)
            except PeerError as error:
                log.debug("%s: %s", what, error)
                return error

        return await asyncio.gather(*(one(number) for number in self._others))

    async def _tell_snapshot(self, question: dict[str, Any], data: bytes) -> object:
        return {"began": self._began, "snapshot": to_plain(self._own())}

    async def _tell_facts(self, question: dict[str, Any], data: bytes) -> object:
        found = await facts(self._site, time.monotonic(), str(question["subject"]))
        return _FACTS.dump_python(found, mode="json")

    async def _tell_figures(self, question: dict[str, Any], data: bytes) -> object:
        return _FIGURES.dump_python(figures(self._site), mode="json")

    async def _obey(self, question: dict[str, Any], data: bytes) -> object:
        command = Command(question["verb"], question["subject"], question["argument"])
        return await carry_out_here(command, self._site)

    async def _tell_standing(self, question: dict[str, Any], data: bytes) -> object:
        return {
            "everything": self._site.paused,
            "paused": [name for name, served in self._site.served.items() if served.cluster.paused],
            "disabled": sorted(self._site.gate.disabled),
        }

    async def _hear_batch(self, question: dict[str, Any], data: bytes) -> object:
        self._take_batch(data, int(question["number"]), list(question["events"]))
        return None

"""Run a case at PostgreSQL itself and through the proxy, and compare what its clients saw."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from tests.differential.client import PLAINLY, Client, Manner
from tests.differential.interference import Interference
from tests.differential.rules import RULES
from tests.differential.script import Case, read
from tests.differential.stage import PERMISSIONS, ROLES, Stage
from tests.integration.support import Installation, Login, Proxy

FILES: Final = sorted(Path(__file__).with_name("corpus").glob("*.txt"))

PHASES: Final = (0, 1)
"""Each case runs once for each at the proxy: what others do between its steps starts elsewhere."""

Verdict = Literal["same", "documented", "known", "different"]


@dataclass
class Result:
    """What came of a case: `same`, a `documented` or `known` difference, or `different`, which fails the run."""

    case: Case
    verdict: Verdict
    why: str = ""
    report: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Return the file's name and the case's."""
        return f"{self.case.file}: {self.case.name}"


class Comparison:
    """Runs cases; `interference` is at work on the proxy only, for it must not be seen there."""

    def __init__(
        self,
        installation: Installation,
        proxy: Proxy,
        stage: Stage,
        setting: str = "transaction",
        manner: Manner = PLAINLY,
    ) -> None:
        self._stage = stage
        self._setting = setting
        self._manner = manner
        self._direct = {name: installation.role(role) for name, role in ROLES.items()}
        self._proxied = self._keys(installation, proxy, "{}@example.com")
        self._strangers = self._keys(installation, proxy, "strange-{}@example.com")
        self._interference: dict[str, Interference] = {}

    @staticmethod
    def _keys(installation: Installation, proxy: Proxy, user: str) -> dict[str, Login]:
        return {
            name: proxy.login(*installation.generate_key(user.format(name), PERMISSIONS[name]))
            for name in ROLES
        }

    async def run(self, cases: Iterable[Case], phases: Sequence[int] = PHASES) -> list[Result]:
        """Return the results of `cases`, run one after another, at the proxy once for each phase."""
        for name in ROLES:
            self._interference[name] = Interference(self._proxied[name], self._strangers[name], self._manner)
            await self._interference[name].start()
        try:
            return [await self._compare(case, phases) for case in cases]
        finally:
            for interference in self._interference.values():
                await interference.stop()

    async def _compare(self, case: Case, phases: Sequence[int]) -> Result:
        direct = await self._play(case, self._direct[case.login], None)
        if any("(nothing more comes)" in lines for lines in direct):
            why = "the script waits for what PostgreSQL never sends"
            return Result(case, "different", why, _told(case, direct))
        proxied = list[list[list[str]]]()
        for phase in phases:
            self._interference[case.login].begin(phase)
            proxied.append(await self._play(case, self._proxied[case.login], self._interference[case.login]))
        seen = next((each for each in proxied if each != direct), proxied[0])
        return judge(case, direct, seen, self._setting)

    async def _play(self, case: Case, login: Login, interference: Interference | None) -> list[list[str]]:
        """Return the lines that came at the login, in each step, and at the end."""
        self._stage.clear()
        interferes = interference is not None
        if interference is not None and len(case.clients) > 1:
            await interference.rest()
            interference = None
        # The proxy opens its server connections with a search_path of its own, whatever the role's is.
        startup = case.startup if interferes else {"search_path": '"$user", public', **case.startup}
        clients = {name: await Client.connect(login, startup, manner=self._manner) for name in case.clients}
        played = [sorted(line for client in clients.values() for line in client.transcript.take())]
        for step in case.steps:
            client = clients[step.client]
            await client.perform(step)
            played.append(client.transcript.take())
            if interference is not None:
                await interference.between(client.status)
                played[-1] += interference.casualties()
        for client in clients.values():
            await client.close()
        played.append([line for client in clients.values() for line in client.transcript.take()])
        return played


def judge(
    case: Case, direct: list[list[str]], proxied: list[list[str]], setting: str = "transaction"
) -> Result:
    """Return the verdict on what was seen on both ways, step by step, in this setting."""
    name = case.differs_in.get(setting, case.differs)
    rule = RULES[name] if name and setting not in RULES[name].absent else None
    differing = [at for at, (one, other) in enumerate(zip(direct, proxied, strict=True)) if one != other]
    unexplained = [at for at in differing if rule is None or not rule.allows(proxied[at])]
    if unexplained:
        report = [line for at in unexplained for line in _difference(case, at, direct[at], proxied[at])]
        return Result(case, "known" if case.known else "different", case.known, report)
    if case.known:
        return Result(case, "different", f"known as {case.known}, but it passes: take the mark off")
    if rule is not None and rule.always and not differing:
        return Result(case, "different", f"differs: {name} is said, but nothing differs")
    return Result(case, "documented", name) if differing else Result(case, "same")


def _difference(case: Case, at: int, direct: list[str], proxied: list[str]) -> list[str]:
    what = ["login"] if at == 0 else case.steps[at - 1].text if at <= len(case.steps) else ["the end"]
    told = [f"> {line[:300]}" for line in what]
    return told + [f"  PostgreSQL  {line}" for line in direct] + [f"  proxy       {line}" for line in proxied]


def _told(case: Case, played: list[list[str]]) -> list[str]:
    return [line for at, lines in enumerate(played) for line in _difference(case, at, lines, [])]


def cases_of(files: Iterable[Path] = FILES) -> list[Case]:
    """Return the cases of `files`."""
    return [case for file in files for case in read(file)]

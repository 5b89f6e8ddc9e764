"""What each request does: check the key, read what was sent, ask, and answer."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from proxy.api import bodies, tags
from proxy.api.entrance import Caller, Entrance, Talk, texts
from proxy.api.models import Body, Depth, Filters, Plain, Statement
from proxy.api.problems import NOT_FOUND, VALIDATION, ApiError
from proxy.api.query import answer
from proxy.api.resources import MOST_BELOW, Ask, Resource, hierarchy

READS: Final = "read:tasks"
WRITES: Final = "write:tasks"
MEASURES: Final = "read:metrics"

_MEASUREMENTS: Final = (
    "SELECT coalesce(jsonb_agg(to_jsonb(m)), '[]')::text"
    " FROM (SELECT * FROM taskmaster.performance_monitoring LIMIT 1000) m"
)
State = Callable[[str], Mapping[str, object]]


class Operations:
    """The operations on resources, and those beside them. `state(database)` tells of its pools and hosts."""

    def __init__(self, entrance: Entrance, state: State) -> None:
        self._entrance = entrance
        self._state = state

    # -- resources

    async def list(self, request: Request, resource: Resource) -> Response:
        """Answer a page of items, with the total and links (RFC 8288)."""
        caller = await self._admit(request, READS)
        filters = bodies.query(request, resource.filters)
        async with self._entrance.talk(caller, request) as talk:
            total, items = await _row(talk, resource.list(filters))
        links = _links(request, filters, int(total))
        page = {
            "page": filters.page,
            "limit": filters.limit,
            "total": int(total),
            "pages": math.ceil(int(total) / filters.limit),
            "links": links,
        }
        told = f'{{"items":{items},{_json(page)[1:]}'
        header = ", ".join(f'<{url}>; rel="{name}"' for name, url in links.items() if name != "self")
        return _answer(told, headers={"link": header} if header else {})

    async def get(self, request: Request, resource: Resource) -> Response:
        """Answer one, or 304 to who has it already."""
        caller = await self._admit(request, READS)
        bodies.query(request, Plain)
        async with self._entrance.talk(caller, request) as talk:
            text = await _item(talk, resource.get(bodies.id_of(request)))
        tag = tags.tag_of(text)
        if tags.unchanged(request.headers.get("if-none-match"), tag):
            return Response(status_code=304, headers={"etag": tags.quoted(tag)})
        return _answer(text, headers={"etag": tags.quoted(tag)})

    async def create(self, request: Request, resource: Resource) -> Response:
        """Make one; once for each Idempotency-Key."""
        caller = await self._admit(request, READS, WRITES)
        bodies.query(request, Plain)
        key = bodies.idempotency_key(request)
        sent = await bodies.body(request, resource.new)
        headers = {}
        async with self._entrance.talk(caller, request) as talk:
            if key is None:
                text = await _item(talk, resource.insert(sent))
            else:
                text, again = await self._once(talk, resource, sent, key)
                headers["idempotency-replayed"] = str(again).lower()
        headers |= {
            "etag": tags.quoted(tags.tag_of(text)),
            "location": f"{request.url.path}/{json.loads(text)['id']}",
        }
        return _answer(text, 201, headers)

    async def _once(self, talk: Talk, resource: Resource, sent: Body, key: str) -> tuple[str, bool]:
        """Return what was made with this key, and whether that was before. One transaction holds row and answer."""
        canonical = json.dumps(sent.model_dump(mode="json", exclude_unset=True), sort_keys=True)
        request_hash = hashlib.sha256(f"{resource.name}\n{canonical}".encode()).hexdigest()
        await talk.ask("BEGIN")
        # Who comes second waits here for the first one's end.
        claim = "SELECT outcome, response FROM taskmaster.claim_request($1, $2)"
        outcome, response = await _row(talk, (claim, [key, request_hash]))
        if outcome == "differs":
            raise ApiError(422, VALIDATION, "this Idempotency-Key was used for another request")
        again = outcome == "answered"
        if not again:
            response = await _item(talk, resource.insert(sent))
            await talk.ask("SELECT taskmaster.answer_request($1, $2)", key, response)
        await talk.ask("COMMIT")
        return response, again

    async def change(self, request: Request, resource: Resource) -> Response:
        """Change what was sent of one; with If-Match only if it is still as the client knows it."""
        caller = await self._admit(request, READS, WRITES)
        bodies.query(request, Plain)
        id, match = bodies.id_of(request), tags.wanted(request.headers.get("if-match"))
        sent = await bodies.body(request, resource.change)
        async with self._entrance.talk(caller, request) as talk:
            found = await _texts(talk, resource.update(id, sent, match))
            if not found:
                await self._why_not(talk, resource, id)
        return _answer(found[0], headers={"etag": tags.quoted(tags.tag_of(found[0]))})

    async def delete(self, request: Request, resource: Resource) -> Response:
        """Delete one; with If-Match only if it is still as the client knows it."""
        caller = await self._admit(request, READS, WRITES)
        bodies.query(request, Plain)
        id, match = bodies.id_of(request), tags.wanted(request.headers.get("if-match"))
        async with self._entrance.talk(caller, request) as talk:
            if not await _texts(talk, resource.delete(id, match)):
                await self._why_not(talk, resource, id)
        return Response(status_code=204)

    async def set_status(self, request: Request, resource: Resource) -> Response:
        """Change the status of one."""
        caller = await self._admit(request, READS, WRITES)
        bodies.query(request, Plain)
        id = bodies.id_of(request)
        sent = await bodies.body(request, resource.status)
        async with self._entrance.talk(caller, request) as talk:
            text = await _item(talk, resource.set_status(id, sent))
        return _answer(text, headers={"etag": tags.quoted(tags.tag_of(text))})

    async def hierarchy(self, request: Request) -> Response:
        """Answer a task and what is below it."""
        caller = await self._admit(request, READS)
        wanted, id = bodies.query(request, Depth), bodies.id_of(request)
        async with self._entrance.talk(caller, request) as talk:
            completion, below = await _row(talk, hierarchy(id, wanted.depth))
        if below == "[]":
            raise _missing()
        cut = len(json.loads(below)) == MOST_BELOW
        told = {"root": id, "completion": float(completion) if completion else None, "truncated": cut}
        return _answer(f'{_json(told)[:-1]},"tasks":{below}}}')

    @staticmethod
    async def _why_not(talk: Talk, resource: Resource, id: str) -> None:
        """Raise why nothing was changed: it isn't there, or isn't as it was."""
        await _item(talk, resource.get(id))
        raise ApiError(412, "PRECONDITION_FAILED", "it was changed meanwhile: get it again, with its ETag")

    # -- the rest

    async def health(self, request: Request) -> Response:
        """Ask the database for a sign of life, through the same pools as everything else."""
        caller = await self._admit(request)
        bodies.query(request, Plain)
        began = time.monotonic()
        async with self._entrance.talk(caller, request) as talk:
            await talk.ask("SELECT 1", timeout=5.0)
        took = round((time.monotonic() - began) * 1000, 3)
        return _answer(_json({"status": "ok", "database": caller.database.name, "response_ms": took}))

    async def metrics(self, request: Request) -> Response:
        """Answer the state of pools and hosts, and what was measured in the last hour."""
        caller = await self._admit(request, MEASURES)
        bodies.query(request, Plain)
        name = caller.database.name
        async with self._entrance.talk(caller, request) as talk:
            try:
                measured = await _item(talk, (_MEASUREMENTS, []))
            except ApiError as problem:
                if problem.status != 501:
                    raise
                # The pools are told without the schema, too.
                measured = "[]"
        told = _json({"database": name, **self._state(name)})
        return _answer(f'{told[:-1]},"measurements":{measured}}}')

    async def query(self, request: Request) -> Response:
        """Run an administrator's statement."""
        caller = await self._admit(request, "admin")
        bodies.query(request, Plain)
        return await answer(self._entrance, caller, request, await bodies.body(request, Statement))

    async def _admit(self, request: Request, *permissions: str) -> Caller:
        caller = await self._entrance.admit(request)
        caller.require(*permissions)
        return caller


async def _texts(talk: Talk, ask: Ask) -> list[str]:
    """Return the first column of each row."""
    sql, parameters = ask
    return [texts(row)[0] for row in await talk.ask(sql, *parameters)]


async def _row(talk: Talk, ask: Ask) -> list[str]:
    """Return the columns of the one row."""
    sql, parameters = ask
    (row,) = await talk.ask(sql, *parameters)
    return texts(row)


async def _item(talk: Talk, ask: Ask) -> str:
    """Return the one that is asked for; raises ApiError where it isn't there, or isn't seen."""
    found = await _texts(talk, ask)
    if not found:
        raise _missing()
    return found[0]


def _missing() -> ApiError:
    return ApiError(404, NOT_FOUND, "there is nothing of that id")


def _links(request: Request, filters: Filters, total: int) -> dict[str, str]:
    """Return where this page, and the others, are."""
    last = max(1, math.ceil(total / filters.limit))
    pages = {"self": filters.page, "first": 1, "last": last}
    if filters.page > 1:
        pages["prev"] = min(filters.page - 1, last)
    if filters.page < last:
        pages["next"] = filters.page + 1
    given = dict(request.query_params)
    return {name: f"{request.url.path}?{urlencode({**given, 'page': page})}" for name, page in pages.items()}


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _answer(text: str, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(text, status, headers, media_type="application/json")

"""The client's names of prepared statements, as the server's answers confirm and undo what was to become of them."""

from __future__ import annotations

from proxy.query.naming import DEALLOCATE_ALL
from proxy.query.naming import PREPARE as PREPARE_STEP
from proxy.query.prepared import Statement
from proxy.session.collect import NO_STATEMENT
from proxy.session.renaming import Edit, Step, in_clients_name, tag_of
from proxy.session.sending import EDITED, UNNAMED
from proxy.session.state import SessionState
from proxy.session.unit import Message
from proxy.wire.reply import CLOSE, PARSE, SINGLE, Reply


class Naming(SessionState):
    """A borrower's callbacks about statements: what a name stands for, and what an error calls it."""

    def completed(self, reply: Reply) -> bytes:
        """Take over what a statement of a rewritten text does to the client's names."""
        if not isinstance(reply, Message) or reply.edit is None:
            return b""
        edit = reply.edit
        number = edit.completed
        edit.completed += 1
        for step in edit.steps:
            if step.number == number:
                self._step(step)
                return tag_of(step)
        return b""

    def _step(self, step: Step) -> None:
        statements = self.statements
        if step.verb == PREPARE_STEP:
            statements.put(step.name, step.statement)
            return
        if step.verb == DEALLOCATE_ALL:
            statements.named = {}
            statements.named_bytes = 0
        else:
            statements.drop(step.name)
        if self.server is not None:
            self.server.drop(step.statement)

    def _unstep(self, edit: Edit) -> None:
        """Note what a rewritten text that is over has not prepared."""
        server = self.server
        for step in edit.steps:
            if step.verb == PREPARE_STEP and step.number >= edit.completed and server is not None:
                server.drop(step.statement)

    def retold(self, reply: Reply, error: bytes) -> bytes:
        """Tell an error of a rewritten text, or of a statement under the server's name, in the client's own names."""
        if not isinstance(reply, Message):
            return error
        statement = reply.statement
        if statement is not None and (reply.name or reply.edit is not None):
            error = in_clients_name(error, EDITED if reply.edit is not None else statement.name, reply.name)
        if reply.edit is None:
            return error
        return b"" if reply.edit.failed else reply.edit.retell(error)

    def undone(self, reply: Reply, later: Reply | None) -> None:
        """Take back what a Parse, Close or Query that was skipped, or a Parse that failed, had changed."""
        server = self.server
        if isinstance(reply, Message):
            if reply.edit is not None:
                self._unstep(reply.edit)
            elif reply.kind == SINGLE:
                if reply.parsing:
                    self._forget_unnamed()
                    self._restore_unnamed(reply, later)
            elif reply.kind == PARSE:
                if reply.error is not None:
                    return
                if not reply.name:
                    self._forget_unnamed()
                    self._restore_unnamed(reply, later)
                    return
                self.statements.drop(reply.name)
                if reply.prepares and reply.statement is not None and server is not None:
                    server.drop(reply.statement)
            elif reply.kind == CLOSE and reply.name and reply.statement is not None:
                self.statements.drop(reply.name)
                self.statements.put(reply.name, reply.statement)
            else:
                self._restore_unnamed(reply, later)
            return
        subject = reply.subject
        if subject is UNNAMED:
            self._forget_unnamed()
        elif isinstance(subject, Statement) and server is not None:
            if reply.kind == PARSE:
                server.drop(subject)
            else:
                # The server has it still: it is closed before it is parsed again.
                server.stale.add(subject.number)

    def _forget_unnamed(self) -> None:
        """Note that the server's unnamed statement is not what it was to become: it is parsed again where needed."""
        if self.server is not None:
            self.server.name_unnamed(None)

    def _restore_unnamed(self, message: Message, later: Reply | None) -> None:
        """Make the unnamed statement what it was before `message`; or none, where a Parse has failed itself.

        What changes it behind `message`, be it sent or not, is told so: it may be undone as well.
        """
        before = message.subject
        if before is None:
            return
        if message.sqlstate:
            before = NO_STATEMENT
        while later is not None:
            if later.subject is not None and isinstance(later, Message):
                later.subject = before
                return
            later = later.next
        unit = self.held_unit if self.held_unit is not None else self.unit
        unsent = unit.first
        while unsent is not None:
            if unsent.subject is not None:
                unsent.subject = before
                return
            unsent = unsent.following
        self.statements.unnamed = before if isinstance(before, Statement) else None

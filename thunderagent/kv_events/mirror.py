"""An engine's prefix cache as its events tell it: which blocks there are, and which sessions they belong to."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define, field, frozen

from thunderagent.kv_events.messages import AllBlocksCleared, BlockHash, BlockRemoved, BlockStored, KvEvent

__all__ = ["CacheMirror", "SessionBlocks"]


@frozen
class SessionBlocks:
    """What an engine has cached of a session.

    ``prefix_tokens`` is the unbroken beginning of the conversation that stored a block last; None where that is not
    known, since its beginning was stored before the events were followed. ``held_tokens`` are all blocks that the
    session stored or that those stand on: of its other conversations too, and dead ends.
    """

    session: str
    prefix_tokens: int | None
    held_tokens: int


@define(eq=False)
class _Session:
    id: str
    tip: BlockHash | None = None
    """The last block of the conversation that stored last, as far as it is cached."""
    prefix_tokens: int | None = 0
    held_tokens: int = 0


@define(eq=False)
class _Block:
    parent: BlockHash | None
    tokens: int
    depth_tokens: int | None
    """Tokens from the start of the prompt to the end of the block; None where a block before it is unknown."""
    copies: int = 1
    """Two requests that compute the same content side by side store it twice."""
    children: int = 0
    holders: list[_Session] = field(factory=list)
    """Sessions that stored it or a block behind it."""


@define(eq=False)
class CacheMirror:
    """Every method is O(blocks named), but that each block before a new one is claimed once per session."""

    cached_tokens: int = 0
    """Tokens of all blocks cached, copies counted once."""
    _blocks: dict[BlockHash, _Block] = field(factory=dict)
    _sessions: dict[str, _Session] = field(factory=dict)
    _changed: dict[str, _Session] = field(factory=dict)

    def apply(self, events: Sequence[KvEvent]) -> None:
        """Take events in the order in which the engine sent them."""
        for event in events:
            if isinstance(event, BlockStored):
                self._store(event)
            elif isinstance(event, BlockRemoved):
                for block in event.block_hashes:
                    self._remove(block)
            elif isinstance(event, AllBlocksCleared):
                self.clear()

    def clear(self) -> None:
        """Nothing is cached any more."""
        self._drop(0)

    def forget(self) -> None:
        """Nothing is known any more of what is cached."""
        self._drop(None)

    def blocks_of(self, session: str) -> SessionBlocks | None:
        """What is cached of a session; None where no block is. O(1)."""
        found = self._sessions.get(session)
        return None if found is None else SessionBlocks(session, found.prefix_tokens, found.held_tokens)

    def _drop(self, prefix_tokens: int | None) -> None:
        for session in self._sessions.values():
            session.tip, session.prefix_tokens, session.held_tokens = None, prefix_tokens, 0
            self._changed[session.id] = session
        self._sessions, self._blocks, self.cached_tokens = {}, {}, 0

    def take_changes(self, limit: int) -> list[SessionBlocks]:
        """What is cached of sessions of which that changed since they were last taken, at most ``limit`` of them."""
        taken: list[SessionBlocks] = []
        while self._changed and len(taken) < limit:
            _, session = self._changed.popitem()
            taken.append(SessionBlocks(session.id, session.prefix_tokens, session.held_tokens))
        return taken

    def _store(self, event: BlockStored) -> None:
        session = None if event.session_id is None else self._session(event.session_id)
        parent = event.parent_block_hash
        for name in event.block_hashes:
            block = self._blocks.get(name)
            if block is None:
                block = self._add(name, parent, event.block_size)
            else:
                block.copies += 1
            if session is not None:
                self._claim(name, session)
            parent = name
        if session is not None and parent is not None:
            session.tip, session.prefix_tokens = parent, self._blocks[parent].depth_tokens

    def _add(self, name: BlockHash, parent: BlockHash | None, tokens: int) -> _Block:
        before = None if parent is None else self._blocks.get(parent)
        depth_tokens: int | None = None
        if parent is None:
            depth_tokens = tokens
        elif before is not None:
            before.children += 1
            depth_tokens = None if before.depth_tokens is None else before.depth_tokens + tokens
        block = self._blocks[name] = _Block(parent, tokens, depth_tokens)
        self.cached_tokens += tokens
        return block

    def _claim(self, name: BlockHash | None, session: _Session) -> None:
        """Note a block and those before it as the session's, up to the first one that is so already."""
        while name is not None:
            block = self._blocks.get(name)
            if block is None or session in block.holders:
                return
            block.holders.append(session)
            session.held_tokens += block.tokens
            name = block.parent

    def _remove(self, name: BlockHash) -> None:
        block = self._blocks.get(name)
        if block is None:
            return  # stored before the events were followed
        block.copies -= 1
        if block.copies:
            return
        del self._blocks[name]
        self.cached_tokens -= block.tokens
        before = None if block.parent is None else self._blocks.get(block.parent)
        if before is not None:
            before.children -= 1
        for session in block.holders:
            session.held_tokens -= block.tokens
            if session.tip == name:
                session.tip = None if before is None else block.parent
                session.prefix_tokens = 0 if before is None else before.depth_tokens
            elif block.children and block.depth_tokens is not None and session.prefix_tokens is not None:
                # A hole: what stands on this block cannot be found any more, though it is still cached.
                session.prefix_tokens = min(session.prefix_tokens, block.depth_tokens - block.tokens)
            self._changed[session.id] = session
            if not session.held_tokens and self._sessions.get(session.id) is session:
                del self._sessions[session.id]

    def _session(self, name: str) -> _Session:
        session = self._sessions.get(name)
        if session is None:
            session = self._sessions[name] = _Session(name)
        self._changed[name] = session
        return session

"""An engine's prefix cache as its events tell it: which blocks there are, and which sessions they belong to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import define, field, frozen

from thunderagent.kv_events.messages import AllBlocksCleared, BlockHash, BlockStored, KvEvent

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


_WINDOWS = ("sliding", "chunked", "mamba", "linear", "conv", "cross", "encoder")
"""In the names of kinds of attention whose blocks are not a whole prefix."""
_PURGE_HOLDERS = 16
_PURGE_EMPTIED = 256


@define(eq=False)
class _Session:
    id: str
    tip: BlockHash | None = None
    """The last block of the conversation that stored last, as far as it is cached."""
    prefix_tokens: int | None = 0
    held_tokens: int = 0

    def told(self) -> SessionBlocks:
        return SessionBlocks(self.id, self.prefix_tokens, self.held_tokens)


@define(eq=False)
class _Block:
    parent: BlockHash | None
    tokens: int
    depth_tokens: int | None
    """Tokens from the start of the prompt to the end of the block; None where a block before it is unknown."""
    copies: int = 1
    """Two requests that compute the same content side by side store it twice."""
    holders: dict[_Session, None] = field(factory=dict)
    """Sessions that stored it or a block behind it."""
    purge_at: int = _PURGE_HOLDERS
    """At so many holders those that nobody asks for any more are taken out."""


@define(eq=False)
class CacheMirror:
    """Every method is O(blocks named), but that each block before a new one is claimed once per session.

    Blocks from a prompt's start are a report of a hit where the first one is cached already, and no further copies:
    a request stores what it did not find. Where that is wrong, the blocks are taken for evicted with their first
    copy: a request that reads no cache, as for the log probabilities of its prompt; a prompt of one block; with
    EAGLE, which computes the last block of each hit again, a prompt that shares one block with what is cached.

    A model with several kinds of attention has a group of blocks for each; those of full attention are the prefix. A
    hit there ends where any group's does, so that cached blocks are computed and stored again from the start: once a
    second group was seen all that is stored is a copy, and blocks of a report are taken for cached until the next
    reset.
    """

    knows: Callable[[str], bool] = lambda session: True
    """Whether anybody asks for a session: others are not kept."""
    cached_tokens: int = 0
    """Tokens of all blocks cached, copies counted once."""
    is_complete: bool = False
    """All that is cached was seen to be stored."""
    _group: int | None = None
    """The one that counts."""
    _groups: set[int] = field(factory=set)
    """All that were seen."""
    _blocks: dict[BlockHash, _Block] = field(factory=dict)
    _children: dict[BlockHash, int] = field(factory=dict)
    """How many cached blocks stand on a block, which need not be cached itself."""
    _holes: dict[BlockHash, dict[_Session, None]] = field(factory=dict)
    """Whose a block was that is gone while others stand on it."""
    _sessions: dict[str, _Session] = field(factory=dict)
    _changed: dict[str, _Session] = field(factory=dict)
    _emptied: set[str] = field(factory=set)
    """Sessions of which nothing is cached any more: that is known, and may be so no longer."""
    _purge_emptied_at: int = _PURGE_EMPTIED

    def apply(self, events: Sequence[KvEvent]) -> None:
        """Take events in the order in which the engine sent them."""
        for event in events:
            if isinstance(event, AllBlocksCleared):
                self.clear()
            elif isinstance(event, BlockStored):
                if self._is_prefix_group(event) and event.block_hashes:
                    self._store(event)
            elif (event.group_idx or 0) == self._group:
                for block in event.block_hashes:
                    self._remove(block)

    def clear(self) -> None:
        """Nothing is cached any more."""
        self._drop(0)
        self.is_complete = True

    def forget(self) -> None:
        """Nothing is known any more of what is cached."""
        self._drop(None)
        self.is_complete = False

    def blocks_of(self, session: str) -> SessionBlocks | None:
        """What is cached of a session; None where no block is. O(1)."""
        found = self._sessions.get(session)
        return None if found is None else found.told()

    def _drop(self, prefix_tokens: int | None) -> None:
        dropped = list(self._sessions.values())
        if prefix_tokens is None:
            dropped += [_Session(name) for name in self._emptied]
            self._emptied = set()
        self._sessions, self._blocks, self._children, self._holes, self.cached_tokens = {}, {}, {}, {}, 0
        for session in dropped:
            session.tip, session.prefix_tokens, session.held_tokens = None, prefix_tokens, 0
            self._changed[session.id] = session
            if prefix_tokens is not None:
                self._note_emptied(session.id)

    def _note_emptied(self, name: str) -> None:
        """Amortized O(1): sessions that are over are taken out when the others have become twice as many."""
        self._emptied.add(name)
        if len(self._emptied) >= self._purge_emptied_at:
            self._emptied = {name for name in self._emptied if self.knows(name)}
            self._purge_emptied_at = max(_PURGE_EMPTIED, 2 * len(self._emptied))

    def take_changes(self, limit: int) -> list[SessionBlocks]:
        """What is cached of sessions of which that changed since they were last taken, at most ``limit`` of them."""
        taken: list[SessionBlocks] = []
        while self._changed and len(taken) < limit:
            _, session = self._changed.popitem()
            taken.append(session.told())
        return taken

    def _is_prefix_group(self, event: BlockStored) -> bool:
        """Whether its blocks are of the group that counts, which is the first of full attention that is seen."""
        group, kind = event.group_idx or 0, event.kv_cache_spec_kind or ""
        self._groups.add(group)
        if self._group is None and not any(name in kind for name in _WINDOWS):
            self._group = group
        return group == self._group

    def _store(self, event: BlockStored) -> None:
        session = None
        if event.session_id is not None and self.knows(event.session_id):
            session = self._session(event.session_id)
        parent = event.parent_block_hash
        is_hit = parent is None and len(self._groups) == 1 and event.block_hashes[0] in self._blocks
        for name in event.block_hashes:
            block = self._blocks.get(name)
            if block is None:
                block = self._add(name, parent, event.block_size)
            elif not is_hit:
                block.copies += 1
            if session is not None:
                self._claim(name, session)
            parent = name
        if session is not None and parent is not None:
            session.tip, session.prefix_tokens = parent, self._blocks[parent].depth_tokens

    def _add(self, name: BlockHash, parent: BlockHash | None, tokens: int) -> _Block:
        depth_tokens: int | None = None
        if parent is None:
            depth_tokens = tokens
        else:
            self._children[parent] = self._children.get(parent, 0) + 1
            before = self._blocks.get(parent)
            if before is not None and before.depth_tokens is not None:
                depth_tokens = before.depth_tokens + tokens
        block = self._blocks[name] = _Block(parent, tokens, depth_tokens)
        self.cached_tokens += tokens
        for session in self._holes.pop(name, ()):
            if self._sessions.get(session.id) is session:
                self._claim(name, session)  # those before it may have been gone too, and are others' anew
                self._changed[session.id] = session
        return block

    def _claim(self, name: BlockHash | None, session: _Session) -> None:
        """Note a block and those before it as the session's, up to the first one that is so already."""
        while name is not None:
            block = self._blocks.get(name)
            if block is None or session in block.holders:
                return
            if len(block.holders) >= block.purge_at:
                self._purge(block)
            block.holders[session] = None
            session.held_tokens += block.tokens
            name = block.parent

    def _purge(self, block: _Block) -> None:
        """Take out sessions that are over: a shared beginning stays for longer than any of them."""
        for session in [session for session in block.holders if not self.knows(session.id)]:
            del block.holders[session]
            session.held_tokens -= block.tokens
            self._drop_if_empty(session)
        block.purge_at = max(_PURGE_HOLDERS, 2 * len(block.holders))

    def _drop_if_empty(self, session: _Session) -> None:
        if not session.held_tokens and self._sessions.get(session.id) is session:
            del self._sessions[session.id]
            self._note_emptied(session.id)

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
        if block.parent is not None:
            self._leave(block.parent)
        is_hole = name in self._children
        if is_hole:
            self._holes[name] = block.holders
        start_tokens = None if block.depth_tokens is None else block.depth_tokens - block.tokens
        for session in block.holders:
            session.held_tokens -= block.tokens
            if session.tip == name:
                session.tip = None if before is None else block.parent
                self._shorten(session, start_tokens)
            elif is_hole and self._is_below_tip(session, name):
                self._shorten(session, start_tokens)  # what stands on it is cached, but cannot be found any more
            self._changed[session.id] = session
            self._drop_if_empty(session)

    def _leave(self, parent: BlockHash) -> None:
        """One block less stands on ``parent``."""
        if self._children[parent] > 1:
            self._children[parent] -= 1
            return
        del self._children[parent]
        self._holes.pop(parent, None)

    @staticmethod
    def _shorten(session: _Session, tokens: int | None) -> None:
        if session.prefix_tokens is not None and tokens is not None:
            session.prefix_tokens = min(session.prefix_tokens, tokens)

    def _is_below_tip(self, session: _Session, name: BlockHash) -> bool:
        """Whether a block that has just gone is on the way to the session's tip; True where a hole hides that."""
        at = session.tip
        while at is not None and at != name:
            block = self._blocks.get(at)
            if block is None:
                return True
            at = block.parent
        return at == name

    def _session(self, name: str) -> _Session:
        session = self._sessions.get(name)
        if session is None:
            session = self._sessions[name] = _Session(name)
            self._emptied.discard(name)
        self._changed[name] = session
        return session

"""What is missing, double or new among numbered messages, and where an engine's publishers are."""

from __future__ import annotations

import json

import pytest

from thunderagent.kv_events.order import EventOrder, Verdict
from thunderagent.kv_events.sources import Address, Source, SourcesUnreadable, read_sources


def judged(order: EventOrder, *sequences: int) -> list[Verdict]:
    """The verdict on each, those to be taken taken."""
    verdicts = []
    for sequence in sequences:
        verdicts.append(verdict := order.judge(sequence))
        if verdict is Verdict.TAKE:
            order.taken(sequence)
    return verdicts


def test_messages_in_order_are_taken() -> None:
    """From 0 on, one by one."""
    assert judged(EventOrder(), 0, 1, 2) == [Verdict.TAKE] * 3


def test_message_behind_a_gap_is_told() -> None:
    """Also the first one of all, where it is not number 0."""
    assert judged(EventOrder(), 5) == [Verdict.MISSED]
    assert judged(EventOrder(), 0, 2) == [Verdict.TAKE, Verdict.MISSED]


def test_message_that_a_replay_brought_is_skipped() -> None:
    """Those queued meanwhile come once more over the subscription; that is no restart."""
    order = EventOrder()
    assert judged(order, 0, 3) == [Verdict.TAKE, Verdict.MISSED]
    order.taken(6)
    assert judged(order, 4, 5, 6, 7) == [Verdict.SKIP, Verdict.SKIP, Verdict.SKIP, Verdict.TAKE]


@pytest.mark.parametrize("first", [0, 2])
def test_number_that_was_there_before_is_another_engine(first: int) -> None:
    """It counts from 0 again, whether its first messages arrive or not."""
    order = EventOrder()
    judged(order, 0, 1, 2, 3)
    assert judged(order, first) == [Verdict.RESTARTED]
    assert order.next_sequence == 0


def page(**fields: object) -> bytes:
    return json.dumps({"0": {"publisher": "zmq", "endpoint": "tcp://*:5557", **fields}}).encode()


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        ("tcp://*:5557", Address("tcp://gpu1:5557", may_bind=False)),
        ("tcp://[::]:5557", Address("tcp://gpu1:5557", may_bind=False)),
        ("tcp://router:5557", Address("tcp://router:5557", may_bind=True)),
        ("tcp://127.0.0.1:5557", Address("tcp://127.0.0.1:5557", may_bind=True)),
        ("ipc:///tmp/kv", Address("ipc:///tmp/kv", may_bind=False)),
    ],
)
def test_endpoint_as_the_subscriber_uses_it(endpoint: str, address: Address) -> None:
    """vLLM binds ``*``; then the backend's own host is to be connected to."""
    (source,) = read_sources(page(endpoint=endpoint, replay_endpoint="tcp://*:5558", topic="kv"), "http://gpu1:8000")
    assert source == Source(0, address, "tcp://gpu1:5558", "kv")


def test_ipv6_backend() -> None:
    """Its address needs brackets."""
    (source,) = read_sources(page(), "http://[::1]:8000")
    assert source == Source(0, Address("tcp://[::1]:5557", may_bind=False), None, "")


def test_engines_without_events_have_no_sources() -> None:
    """As vLLM answers without ``--kv-events-config``, and with events off or published nowhere."""
    assert read_sources(b"{}", "http://a") == []
    assert read_sources(page(enable_kv_cache_events=False), "http://a") == []
    assert read_sources(page(publisher="null"), "http://a") == []


def test_each_rank_is_a_source() -> None:
    """Data parallelism: a publisher per rank, each with its port."""
    body = {str(rank): {"publisher": "zmq", "endpoint": f"tcp://*:{5557 + rank}"} for rank in (1, 0)}
    found = read_sources(json.dumps(body).encode(), "http://a")
    assert [(source.rank, source.events.endpoint) for source in found] == [(0, "tcp://a:5557"), (1, "tcp://a:5558")]


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"<html>", b'{"0": {}}', b'{"x": {"endpoint": "tcp://*:1"}}', page(endpoint="tcp://*")]
)
def test_other_pages_are_unreadable(body: bytes) -> None:
    """Another server's page, a rank that is no number, an endpoint without a port."""
    with pytest.raises(SourcesUnreadable):
        read_sources(body, "http://a")

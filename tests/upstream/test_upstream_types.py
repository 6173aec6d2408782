"""What is read of backends of each type, from the pages that servers of that type write."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

import attrs
import pytest
from upstream_wire import recorded

from thunderagent.testing.fake_backend import FakeBackend, json_answer
from thunderagent.upstream import sglang, skyrl
from thunderagent.upstream.client import BackendClient
from thunderagent.upstream.readers import READERS, type_of
from thunderagent.upstream.reading import BackendObservation, MetricsUnreadable
from thunderagent.upstream.scrape import Scrape, observe

HTML = b"<html><body><h1>502 Bad Gateway</h1></body></html>"
NOT_FOUND = json_answer(b'{"detail":"Not Found"}', "404 Not Found")
FAILING = json_answer(b"Internal Server Error", "500 Internal Server Error")


def of_sglang(name: str) -> bytes:
    return recorded(name, "sglang")


UNDER_LOAD = BackendObservation(
    capacity_tokens=20480,
    kv_usage_ratio=0.28,
    used_tokens=5734,
    running=11,
    waiting=3,
    prefix_hit_ratio=0.75,
    prompt_tokens=81289,
    generation_tokens=7557,
    preemptions=2,
    completed_requests=140,
)


# SGLang's metrics


def test_sglang_page_is_read() -> None:
    """Every number that SGLang's page has."""
    assert sglang.read_metrics(of_sglang("get_metrics")) == UNDER_LOAD


def test_sglang_ranks_are_summed_and_their_schedulers_counted_once() -> None:
    """Data-parallel ranks are one backend; the tensor-parallel schedulers of a rank all tell the same requests."""
    seen = sglang.read_metrics(of_sglang("get_metrics_dp"))
    assert seen == attrs.evolve(
        UNDER_LOAD,
        capacity_tokens=40960,
        kv_usage_ratio=pytest.approx(0.15),
        used_tokens=6144,
        running=7,
        waiting=4,
        prefix_hit_ratio=0.375,
        preemptions=1,
    )


def test_sglang_priorities_are_not_counted_twice() -> None:
    """With priority scheduling the sample of all stands beside one per priority."""
    seen = sglang.read_metrics(of_sglang("get_metrics_priority"))
    assert seen == attrs.evolve(
        UNDER_LOAD, running=3, waiting=2, kv_usage_ratio=0.4, used_tokens=8192, prefix_hit_ratio=0.5, preemptions=None
    )


def test_sglang_page_with_few_labels_is_read() -> None:
    """Older versions label with the model only, and have fewer names."""
    seen = sglang.read_metrics(of_sglang("get_metrics_old"))
    assert seen == BackendObservation(
        kv_usage_ratio=0.28,
        used_tokens=123859,
        running=162,
        waiting=2826,
        prefix_hit_ratio=pytest.approx(0.0075, abs=1e-4),
        prompt_tokens=8128902,
        generation_tokens=7557572,
    )


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"# HELP x y\nx 1\n",
        b"sglang:token_usage NaN\nsglang:num_running_reqs{} NaN\nsglang:num_queue_reqs +Inf\n",
        b"vllm:num_requests_running 3\n",
    ],
    ids=["empty", "others", "not finite", "vLLM"],
)
def test_sglang_page_without_numbers_is_all_unknown(page: bytes) -> None:
    """What is no number counts as not told."""
    assert sglang.read_metrics(page) == BackendObservation()


def test_sglang_value_that_is_no_number_leaves_the_others() -> None:
    """One rank that tells NaN is left out of the mean."""
    page = of_sglang("get_metrics_dp").replace(b"} 0.1\n", b"} NaN\n")
    assert b"NaN" in page
    assert sglang.read_metrics(page).kv_usage_ratio == 0.2


@pytest.mark.parametrize("page", [HTML, b"\xff\xfe", b"sglang:token_usage{tp_rank= 3\n", b"sglang:token_usage x\n"])
def test_sglang_garbage_is_unreadable(page: bytes) -> None:
    """A page that is no metrics page is told as such."""
    with pytest.raises(MetricsUnreadable, match="metrics page cannot be read"):
        sglang.read_metrics(page)


# SGLang's capacity


@pytest.mark.parametrize(
    ("name", "capacity_tokens"),
    [("get_server_info", 20480), ("get_server_info_dp", 40480), ("get_server_info_states_only", 20480)],
)
def test_sglang_capacity_is_that_of_all_ranks(name: str, capacity_tokens: int) -> None:
    """``max_total_num_tokens`` is one rank's: with several the internal states say it of each."""
    assert sglang.read_capacity(of_sglang(name)) == capacity_tokens


@pytest.mark.parametrize(
    ("page", "capacity_tokens"),
    [
        (b'{"max_total_num_tokens": 1000, "dp_size": 4, "internal_states": []}', 4000),
        (b'{"max_total_num_tokens": 1000, "dp_size": 2, "internal_states": [{}, {"memory_usage": {}}]}', 2000),
        (b'{"max_total_num_tokens": 1000.0}', 1000),
        (b'{"internal_states": [{"memory_usage": {"token_capacity": 700}}, {}]}', None),
        (b'{"internal_states": [{"memory_usage": {"token_capacity": 700}}, "down"]}', None),
        (b'{"max_total_num_tokens": 0}', None),
        (b'{"max_total_num_tokens": -1}', None),
        (b'{"max_total_num_tokens": "1000"}', None),
        (b'{"max_total_num_tokens": true}', None),
        (b'{"max_total_num_tokens": null, "internal_states": null}', None),
        (b'{"max_total_num_tokens": NaN}', None),
        (b"{}", None),
        (b"[1]", None),
        (b"[" * 100_000, None),
        (b"", None),
        (b"\xff", None),
        (HTML, None),
    ],
)
def test_sglang_capacity_is_unknown_where_it_is_not_told_of_every_rank(
    page: bytes, capacity_tokens: int | None
) -> None:
    """A part of the sum would be a wrong capacity, and so would be a guess."""
    assert sglang.read_capacity(page) == capacity_tokens


# SkyRL


def test_skyrl_page_is_read() -> None:
    """Requests and preemptions are summed, usage averaged and no longer in percent; the capacity is assumed."""
    assert skyrl.read_metrics(recorded("get_metrics", "skyrl")) == BackendObservation(
        capacity_tokens=400_000, kv_usage_ratio=0.25, running=9, waiting=3, preemptions=4
    )


def test_skyrl_engine_that_does_not_tell_counts_by_its_cache() -> None:
    """What an engine leaves out, or tells as null or text, is left out of sums and mean."""
    page = b'{"engines": [{"kv_cache_usage_pct": null, "num_running_reqs": "2"}, {"num_running_reqs": 1}, {}]}'
    assert skyrl.read_metrics(page) == BackendObservation(capacity_tokens=600_000, running=1)
    assert skyrl.read_metrics(b'{"engines": []}') == BackendObservation()


@pytest.mark.parametrize(
    "page",
    [
        HTML,
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"engines": 2}',
        b'{"engines": [1]}',
        b'{"engines": [{"kv_cache_usage_pct": NaN}]}',
        b"vllm:num_requests_running 3\n",
    ],
)
def test_skyrl_garbage_is_unreadable(page: bytes) -> None:
    """A page without engines is told as such, with no part of it taken."""
    with pytest.raises(MetricsUnreadable, match="metrics page cannot be read"):
        skyrl.read_metrics(page)


# Looks


class Watched:
    """A fake backend, and one reader that looks at it again and again."""

    def __init__(self, fake: FakeBackend, name: str) -> None:
        self.fake, self.reader, self.client = fake, READERS[name](), BackendClient(fake.url)

    async def look(self) -> Scrape:
        return await observe(self.client, self.reader, health_timeout_seconds=1.0, page_timeout_seconds=1.0)


@pytest.fixture
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[Watched]:
    """A backend of the type in the parameter."""
    async with FakeBackend(type=request.param, models=("tiny",)) as fake:
        watched = Watched(fake, request.param)
        yield watched
        await watched.client.close()


def only(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("backend", [name], indirect=True)


def sglang_pages(**pages: bytes | None) -> Mapping[str, bytes | None]:
    """SGLang's pages, with others in place of some; a name's first ``_`` stands for the slash."""
    usual: dict[str, bytes | None] = {
        "/metrics": json_answer(of_sglang("get_metrics")),
        "/server_info": json_answer(of_sglang("get_server_info")),
    }
    return {**usual, **{name.replace("_", "/", 1): page for name, page in pages.items()}}


@only("sglang")
async def test_sglang_capacity_is_asked_for_once(backend: Watched) -> None:
    """It takes a round through the schedulers; and never is a page asked for that runs the model by its name."""
    backend.fake.pages = sglang_pages()
    for _ in range(3):
        found = await backend.look()
        assert found.observation is not None
        assert (found.observation.capacity_tokens, found.observation.running) == (20480, 11)
        assert (found.healthy, found.models, found.errors) == (True, frozenset({"tiny"}), ())
    assert backend.fake.looks == {"/health": 3, "/v1/models": 3, "/metrics": 3, "/server_info": 1}


@only("sglang")
async def test_sglang_of_older_versions_is_asked_by_the_older_name(backend: Watched) -> None:
    """``/server_info`` is not there: ``/get_server_info`` is."""
    old = json_answer(of_sglang("get_server_info_states_only"))
    backend.fake.pages = sglang_pages(_server_info=NOT_FOUND, _get_server_info=old)
    found = await backend.look()
    assert found.observation is not None
    assert (found.observation.capacity_tokens, found.errors) == (20480, ())


@only("sglang")
async def test_sglang_without_metrics_has_its_capacity(backend: Watched) -> None:
    """Without --enable-metrics there is no page; the capacity comes from elsewhere."""
    backend.fake.pages = sglang_pages(_metrics=NOT_FOUND)
    assert await backend.look() == Scrape(
        True,
        False,
        frozenset({"tiny"}),
        BackendObservation(capacity_tokens=20480),
        ("/metrics: status 404; SGLang has the page with --enable-metrics",),
    )


@only("sglang")
@pytest.mark.parametrize(
    ("info", "error"),
    [
        (None, "/server_info: no full answer within 1 s"),
        (FAILING, "/server_info: status 500"),
        (json_answer(HTML), "/server_info: names no max_total_num_tokens"),
        (json_answer(b'{"max_total_num_tokens": null}'), "/server_info: names no max_total_num_tokens"),
        (NOT_FOUND, "/get_server_info: status 404"),
    ],
    ids=["slow", "failing", "HTML", "null", "missing"],
)
async def test_sglang_that_does_not_tell_its_capacity_is_healthy(
    backend: Watched, info: bytes | None, error: str
) -> None:
    """Capacity unknown is no failure; it is asked for at each look until it comes."""
    metrics = json_answer(of_sglang("get_metrics").replace(b"sglang:max_total_num_tokens", b"sglang:not_there"))
    backend.fake.pages = sglang_pages(_server_info=info, _metrics=metrics)
    seen = attrs.evolve(UNDER_LOAD, capacity_tokens=None)
    assert await backend.look() == Scrape(True, False, frozenset({"tiny"}), seen, (error,))
    backend.fake.pages = sglang_pages()
    found = await backend.look()
    assert found.observation is not None
    assert found.observation.capacity_tokens == 20480


@only("sglang")
async def test_sglang_s_metrics_tell_the_capacity_where_its_own_page_does_not(backend: Watched) -> None:
    """Newer versions have it there too, and want no key for it."""
    refused = json_answer(b'{"error":"Unauthorized"}', "401 Unauthorized")
    backend.fake.pages = sglang_pages(_server_info=refused)
    assert await backend.look() == Scrape(True, False, frozenset({"tiny"}), UNDER_LOAD, ("/server_info: status 401",))


@only("sglang")
@pytest.mark.parametrize(
    "page", [None, FAILING, json_answer(HTML), json_answer(b"\xff")], ids=["slow", "failing", "HTML", "binary"]
)
async def test_sglang_with_broken_metrics_is_healthy(backend: Watched, page: bytes | None) -> None:
    """The capacity stays known where the metrics fail."""
    backend.fake.pages = sglang_pages(_metrics=page)
    found = await backend.look()
    assert (found.healthy, found.observation) == (True, BackendObservation(capacity_tokens=20480))
    assert [error.split(":")[0] for error in found.errors] == ["/metrics"]


@only("sglang")
async def test_sglang_that_failed_a_look_is_asked_anew(backend: Watched) -> None:
    """What comes back may be another process, with another capacity; until it says so, the former one counts."""
    backend.fake.pages = sglang_pages()
    await backend.look()
    backend.fake.is_healthy = False
    assert (await backend.look()).healthy is False
    backend.fake.is_healthy = True
    seen = []
    metrics = json_answer(of_sglang("get_metrics_old"))
    for info in (None, json_answer(b'{"max_total_num_tokens": 7000}')):
        backend.fake.pages = sglang_pages(_server_info=info, _metrics=metrics)
        found = await backend.look()
        assert found.observation is not None
        seen.append((found.healthy, found.observation.capacity_tokens))
    assert seen == [(True, 20480), (True, 7000)]


@only("sglang")
async def test_sglang_that_restarted_between_two_looks_is_asked_anew(backend: Watched) -> None:
    """Counters that fell are another process's."""
    backend.fake.pages = sglang_pages()
    await backend.look()
    young = of_sglang("get_metrics_dp").replace(b"sglang:prompt_tokens_total", b"sglang:not_counted_yet")
    info = json_answer(b'{"max_total_num_tokens": 7000}')
    backend.fake.pages = sglang_pages(_metrics=json_answer(young), _server_info=info)
    seen = []
    for _ in range(3):
        found = await backend.look()
        assert found.observation is not None
        seen.append(found.observation.capacity_tokens)
    assert seen == [40960, 7000, 7000]
    assert backend.fake.looks["/server_info"] == 2


@only("sglang")
async def test_sglang_s_keys_are_in_no_error(backend: Watched) -> None:
    """``/server_info`` holds the server's API key."""
    info = (
        of_sglang("get_server_info").replace(b'"max_total_num_tokens": 20480', b'"x": 1').replace(b"20480", b"null")
    )
    assert b"sk-of-the-server" in info
    for page in (info, info[:-20]):
        backend.fake.pages = sglang_pages(_server_info=json_answer(page))
        assert "sk-of" not in str(await backend.look())


@only("skyrl")
async def test_skyrl_needs_no_models_page(backend: Watched) -> None:
    """SkyRL's endpoint does not list its model: any may be asked of it."""
    backend.fake.models, backend.fake.pages = None, {"/metrics": json_answer(recorded("get_metrics", "skyrl"))}
    found = await backend.look()
    assert (found.healthy, found.models, found.errors) == (True, None, ("/v1/models: status 404",))
    assert found.observation is not None
    assert found.observation.capacity_tokens == 400_000
    backend.fake.pages = {"/metrics": json_answer(HTML)}
    found = await backend.look()
    assert (found.healthy, found.observation) == (True, None)


@only("openai")
async def test_openai_server_is_asked_for_nothing_but_its_models(backend: Watched) -> None:
    """A hosted API has neither health nor metrics page."""
    assert await backend.look() == Scrape(True, False, frozenset({"tiny"}), None, ())
    assert backend.fake.looks == {"/v1/models": 1}


@only("openai")
@pytest.mark.parametrize(
    ("page", "expected"),
    [
        (FAILING, Scrape(False, False, None, None, ("/v1/models: status 500",))),
        (None, Scrape(False, True, None, None, ("/v1/models: no full answer within 1 s",))),
        (json_answer(b"{}", "401 Unauthorized"), Scrape(True, False, None, None, ("/v1/models: status 401",))),
        (NOT_FOUND, Scrape(True, False, None, None, ("/v1/models: status 404",))),
    ],
    ids=["failing", "slow", "no key", "missing"],
)
async def test_openai_server_is_judged_by_its_models_page(
    backend: Watched, page: bytes | None, expected: Scrape
) -> None:
    """A server error is bad health; that a page is not for us, or not there, is none."""
    backend.fake.pages = {"/v1/models": page}
    assert await backend.look() == expected


# Types


PAGES = {
    "vllm": recorded("get_metrics_load"),
    "sglang": of_sglang("get_metrics"),
    "skyrl": recorded("get_metrics", "skyrl"),
}


@pytest.mark.parametrize("page", [b"", HTML, b"\xff", b"# HELP vllm:x y\nx 1\n", b"{}"])
def test_unknown_page_is_of_no_type(page: bytes) -> None:
    """Only the type's own lines tell a type."""
    assert type_of(page) is None


@pytest.mark.parametrize("said", PAGES)
@pytest.mark.parametrize("backend", PAGES, indirect=True)
async def test_metrics_of_another_type_are_recognised(backend: Watched, said: str) -> None:
    """A look says what the page looks like, where that is not what the backend is said to be."""
    is_type = backend.reader.name
    watched = Watched(backend.fake, said)
    backend.fake.pages = {"/metrics": json_answer(PAGES[is_type])}
    found = await watched.look()
    assert found.looks_like == (None if said == is_type else is_type)
    await watched.client.close()


@only("sglang")
async def test_sglang_page_with_other_lines_only_is_not_doubted(backend: Watched) -> None:
    """A server that has just started has no sample of the needed names yet."""
    backend.fake.pages = sglang_pages(_metrics=json_answer(b"sglang:gen_throughput 0.0\n"))
    assert (await backend.look()).looks_like is None

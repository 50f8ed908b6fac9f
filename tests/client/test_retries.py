"""When a request is sent again, told without a service: the test answers each step of the flow."""

import httpx
import pytest

from toposerve_client import Forbidden, NotFound, Refused, Unreachable
from toposerve_client.jobs import Jobs
from toposerve_client.requests import Item, Lines, Open, Pause, Request, exchange
from toposerve_client.transport import Blocking, Connection, Group

URL = "http://127.0.0.1:8000"
BUSY = httpx.Response(503, json={"code": "busy", "detail": "The queue is full."}, headers={"Retry-After": "3"})
GOOD = httpx.Response(200, json={"id": "1"})
POST = Request("POST", "/v1/jobs", json={})


def played(request, *answers, retries=4):
    """The outcome of a request that is answered so, the seconds of each pause, and how often it was sent."""
    flow, pauses, sent, left = exchange(request, URL, retries), [], 0, list(answers)
    step = next(flow)
    try:
        while True:
            if isinstance(step, Pause):
                pauses.append(step.seconds)
                step = flow.send(None)
                continue
            assert step is request
            sent += 1
            answer = left.pop(0)
            step = flow.throw(answer) if isinstance(answer, Exception) else flow.send(answer)
    except StopIteration as ended:
        return ended.value, pauses, sent
    except (Refused, Unreachable) as error:
        return error, pauses, sent


def test_busy_service_is_asked_again_after_the_time_it_says():
    assert played(POST, BUSY, BUSY, GOOD) == (GOOD, [3.0, 3.0], 3)


def test_pauses_grow_where_the_service_says_no_time():
    answer, pauses, sent = played(POST, *[httpx.ConnectError("refused")] * 4, GOOD)
    assert answer is GOOD and sent == 5
    assert all(0.25 * 2**n / 2 <= pause <= 0.25 * 2**n for n, pause in enumerate(pauses)) and len(pauses) == 4


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_every_passing_refusal_is_tried_again(status):
    assert played(POST, httpx.Response(status), GOOD)[0] is GOOD


def test_first_sending_that_still_runs_is_waited_for():
    running = httpx.Response(409, json={"code": "idempotency_in_progress", "detail": "Still running."})
    assert played(POST, running, GOOD)[0] is GOOD
    other = httpx.Response(409, json={"code": "conflict", "detail": "It exists."})
    assert played(POST, other, GOOD)[2] == 1


def test_lasting_refusals_are_raised_at_once_with_the_sentence():
    problem = {"code": "invalid", "detail": "Two fields are wrong.", "errors": [{"pointer": "/stepz", "detail": "no"}]}
    error, pauses, sent = played(POST, httpx.Response(422, json=problem | {"request_id": "r-1"}), GOOD)
    assert (error.status, error.code, error.request_id, pauses, sent) == (422, "invalid", "r-1", [], 1)
    assert str(error) == "Two fields are wrong.\n  /stepz: no" and error.fields == problem["errors"]
    assert isinstance(played(POST, httpx.Response(404, json={}))[0], NotFound)
    assert isinstance(played(POST, httpx.Response(403, json={}))[0], Forbidden)
    assert str(played(POST, httpx.Response(500, text="<html>"))[0]) == "The answer was 500 without an explanation."


def test_the_last_answer_is_raised_when_it_is_busy_for_too_long():
    error, pauses, sent = played(POST, *[BUSY] * 3, retries=2)
    assert (str(error), len(pauses), sent) == ("The queue is full.", 2, 3)
    tomorrow = httpx.Response(503, json={"detail": "Closed."}, headers={"Retry-After": "86400"})
    assert played(POST, tomorrow, GOOD)[1:] == ([], 1)


def test_what_may_have_arrived_is_sent_again_only_if_that_is_harmless():
    once = Request("POST", "/v1/jobs/1/resume", repeatable=False)
    for error in (httpx.ReadTimeout("late"), httpx.RemoteProtocolError("hung up"), httpx.WriteError("broken")):
        assert played(POST, error, GOOD)[0] is GOOD
        assert isinstance(played(once, error, GOOD)[0], Unreachable)
    assert played(once, httpx.ConnectError("refused"), GOOD)[0] is GOOD


def test_unreachable_service_is_named_with_what_to_do():
    error, _, _ = played(POST, httpx.ConnectError("Connection refused"), retries=0)
    assert str(error).startswith(f"No service answers at {URL} (Connection refused).") and "toposerve up" in str(error)


def test_every_sending_of_a_post_has_the_same_idempotency_key_and_every_post_another():
    group = Group(Blocking(Connection(URL, None, 1, 4)))

    def keys():
        flow = group._ask("POST", "/v1/jobs", json={})
        first = next(flow)
        assert isinstance(flow.send(BUSY), Pause)
        return first.headers["Idempotency-Key"], flow.send(None).headers["Idempotency-Key"]

    first, second = keys(), keys()
    assert first[0] == first[1] and second[0] == second[1] and first[0] != second[0]
    given = next(group._ask("POST", "/v1/jobs", key="mine"))
    assert given.headers["Idempotency-Key"] == "mine"
    assert "Idempotency-Key" not in next(group._ask("GET", "/v1/jobs")).headers


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("clinic:8000", "http://clinic:8000"),
        ("localhost:8000/", "http://localhost:8000"),
        ("127.0.0.1:80", "http://127.0.0.1:80"),
        (" https://clinic/topo/ ", "https://clinic/topo"),
        ("[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_address_may_be_a_host_and_a_port(given, url):
    assert Connection(given, None, 1, 0).url == url


@pytest.mark.parametrize("given", ["ftp://clinic", "http://", "file:///etc/passwd"])
def test_what_is_no_address_of_a_service_is_refused(given):
    with pytest.raises(ValueError, match="no address of a service"):
        Connection(given, None, 1, 0)


def test_address_and_key_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("TOPOSERVE_URL", "clinic:9")
    monkeypatch.setenv("TOPOSERVE_KEY", "ts_key")
    connection = Connection(None, None, 1, 0)
    assert connection.url == "http://clinic:9" and connection.options["headers"] == {"Authorization": "Bearer ts_key"}
    monkeypatch.setenv("TOPOSERVE_PROJECT", "clinic")
    assert Connection(None, None, 1, 0).options["headers"]["X-Project"] == "clinic"
    assert Connection(None, None, 1, 0, "ward-3").options["headers"]["X-Project"] == "ward-3"


# The events of a job ------------------------------------------------------------------------------------------------


def test_events_go_on_where_a_broken_connection_stopped():
    """Two events, a broken connection, a service that restarts, the rest; told by answering each step."""
    stream = httpx.Response(200)
    sent = [*["id: 1", "event: state", 'data: {"state": "running"}', ""], *["id: 2", "data: {}", ""]]
    answers = [
        *[Lines(stream, None), *sent, httpx.ReadError("broken"), None],
        *[Lines(BUSY, None), None],
        *[Lines(stream, None), ": still here", "", "id: 5", "event: log", 'data: {"message": "a: b"}', "", None],
        httpx.Response(200, json={"state": "succeeded"}),
    ]
    flow = Jobs.events._flow(Jobs(Blocking(Connection(URL, None, 1, 4))), "j")
    events, opened, step = [], [], next(flow)
    for answer in answers:
        while isinstance(step, Item):
            events.append(step.value)
            step = next(flow)
        if isinstance(step, Open):
            opened.append(step.request.headers["Last-Event-ID"])
        step = flow.throw(answer) if isinstance(answer, Exception) else _sent(flow, answer)
    assert step is None
    assert events == [(1, "state", {"state": "running"}), (2, "message", {}), (5, "log", {"message": "a: b"})]
    assert opened == ["0", "2", "2"]


def _sent(flow, answer):
    try:
        return flow.send(answer)
    except StopIteration:
        return None


def test_events_of_a_job_that_is_not_there_are_refused_at_once():
    flow = Jobs.events._flow(Jobs(Blocking(Connection(URL, None, 1, 4))), "j")
    next(flow)
    with pytest.raises(NotFound):
        flow.send(Lines(httpx.Response(404, json={"detail": "There is none."}), None))

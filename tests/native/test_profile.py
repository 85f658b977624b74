"""Counters of launches: every chunk of every step is counted once, by whoever ran it."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from ondevice.errors import RuntimeFailure
from ondevice.runtime.header import Status
from ondevice.runtime.native import NativeEngine
from ondevice.runtime.profile import Profile

from .conftest import OpenToy

PROMPT = [i * 11 % 97 for i in range(70)]  # two steps, of 48 and 22 tokens
# embed, one that never runs, write_kv, two of other depths, attend, project; then choosing a token
EMBED, WRITE, ATTEND, PROJECT, CHOOSE = 0, 2, 5, 6, 7


def generate(engine: NativeEngine, count: int) -> list[int]:
    conversation = engine.conversation()
    conversation.submit(PROMPT, count)
    tokens: list[int] = []
    while True:
        status, more = conversation.read()
        tokens += more
        if status not in (Status.OK, Status.TIMEOUT):
            conversation.close()
            return tokens


def chunks(profile: Profile) -> dict[int, int]:
    rows = profile.rows()
    return {
        launch: int(rows["chunks"][rows["launch"] == launch].sum())
        for launch in set(rows["launch"])
    }


@pytest.mark.parametrize("threads", [1, 3])
def test_every_chunk_is_counted_once(open_toy: OpenToy, threads: int) -> None:
    engine = open_toy(threads=threads, draft_tokens=-1)
    plain = generate(engine, 6)
    engine.close()
    engine = open_toy(threads=threads, draft_tokens=-1)
    with Profile(engine) as profile:
        assert generate(engine, 6) == plain
        steps = [48, 22, 1, 1, 1, 1, 1]
        expected = {
            launch: sum(-(-rows // chunk) for rows in steps)
            for launch, chunk in ((EMBED, 5), (WRITE, 3), (ATTEND, 2))
        }
        assert chunks(profile) == {**expected, PROJECT: 6 * -(-97 // 16), CHOOSE: 6}
        rows = profile.rows()
        first = rows[rows["worker"] == 0]  # who starts the list walks all of it
        assert first["runs"].tolist() == [7, 7, 7, 6, 6]
        assert set(rows["worker"]) <= set(range(threads))
        assert (rows["busy_ns"] >= 0).all() and (rows["wait_ns"] >= 0).all()
        assert first["busy_ns"].sum() > 0


def test_it_starts_from_zero_and_ends(open_toy: OpenToy) -> None:
    engine = open_toy()
    with Profile(engine) as profile:
        generate(engine, 2)
        assert len(profile.rows()) > 0
        assert len(Profile(engine).rows()) == 0
        generate(engine, 2)
        assert len(profile.rows()) > 0 and len(profile.events()) == 0
    with pytest.raises(RuntimeFailure, match="no profile has been started"):
        profile.rows()
    profile.close()
    generate(engine, 2)
    engine.close()
    profile.close()


def test_the_last_runs_are_kept(open_toy: OpenToy) -> None:
    engine = open_toy(threads=2, draft_tokens=-1)
    profile = Profile(engine, events=7)
    generate(engine, 6)
    events = profile.events()
    own = events[events["worker"] == 0]
    assert own["launch"].tolist() == [PROJECT, CHOOSE, EMBED, WRITE, ATTEND, PROJECT, CHOOSE]
    assert (own["arrived_ns"] <= own["begin_ns"]).all()
    assert (own["begin_ns"] <= own["end_ns"]).all()
    assert (np.diff(own["begin_ns"]) >= 0).all()


def test_nobody_counts_while_somebody_generates(open_toy: OpenToy) -> None:
    engine = open_toy()
    done = threading.Event()

    def talk() -> None:
        while not done.is_set():
            generate(engine, 100)

    talker = threading.Thread(target=talk)
    talker.start()
    deadline = time.monotonic() + 60
    with pytest.raises(RuntimeFailure, match="a conversation is generating"):
        while time.monotonic() < deadline:  # it may be between two answers
            Profile(engine)
    done.set()
    talker.join()


def test_refusals(open_toy: OpenToy) -> None:
    engine = open_toy()
    with pytest.raises(RuntimeFailure, match="events = -1 is negative"):
        Profile(engine, events=-1)
    engine.close()
    with pytest.raises(RuntimeFailure, match="closed"):
        Profile(engine)

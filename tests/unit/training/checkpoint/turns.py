"""Several processes on one clock, of which a seed says at each call of storage who is next.

Each process is a thread that runs only between two calls of its store, so any two can meet at any
of them. Who is frozen stands still before a call, and makes it when it wakes.
"""

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dreambooth_ray.errors import StorageError
from dreambooth_ray.storage.store import Store

_MOST_TURNS = 20_000


class Killed(BaseException):
    """What SIGKILL is to a process."""


class Actor:
    """One process. offset_s: of its monotonic clock."""

    def __init__(self, turns: "Turns", name: str, work: Callable[["Actor"], None]) -> None:
        self.turns, self.name, self.error = turns, name, None
        self.wakes_at_s, self.cut_off_until_s = 0.0, -1.0
        self.offset_s, self.is_over, self.must_die = turns.random.uniform(-1e6, 1e6), False, False
        self.turn = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(work,), daemon=True)

    def clock(self) -> float:
        return self.turns.now_s + self.offset_s

    def pause(self, seconds: float = 0.0) -> None:
        """Until it is this one's turn, after so many seconds."""
        self.wakes_at_s = self.turns.now_s + seconds
        self.turns.returned.set()
        self.turn.wait()
        self.turn.clear()
        if self.must_die:
            raise Killed

    def end(self) -> None:
        """Kill it, if the test is over before it is."""
        self.must_die = True
        while not self.is_over:
            self.turn.set()
            self.thread.join(0.01)

    def _run(self, work: Callable[["Actor"], None]) -> None:
        try:
            self.turn.wait()
            self.turn.clear()
            work(self)
        except Killed:
            pass
        except BaseException as error:  # told by the test's own thread
            self.error = error
        finally:
            self.is_over = True
            self.turns.returned.set()


class Turns:
    """Gives turns, and freezes, cuts off and kills now and then."""

    def __init__(self, seed: int, freeze_s: float) -> None:
        self.random, self.freeze_s, self.now_s = random.Random(seed), freeze_s, 0.0
        self.actors: list[Actor] = []
        self.returned = threading.Event()
        self.counts = {"frozen": 0, "cut off": 0, "killed": 0}

    def add(self, name: str, work: Callable[[Actor], None]) -> Actor:
        actor = Actor(self, name, work)
        self.actors.append(actor)
        actor.thread.start()
        return actor

    def run(self, look: Callable[[], None], odds: dict[str, float]) -> None:
        """Until all are over. look: called between any two calls; odds: of each fault, a turn"""
        try:
            self._give_turns(look, odds)
        finally:
            for actor in self.actors:
                actor.end()

    def _give_turns(self, look: Callable[[], None], odds: dict[str, float]) -> None:
        num_turns = 0
        while live := [actor for actor in self.actors if not actor.is_over]:
            num_turns += 1
            assert num_turns < _MOST_TURNS, "nobody comes to an end"
            ready = [actor for actor in live if actor.wakes_at_s <= self.now_s]
            if not ready:
                self.now_s = min(actor.wakes_at_s for actor in live)
                continue
            actor = self.random.choice(ready)
            self.now_s += self.random.uniform(0, 2)
            if self._spoil(actor, odds, is_last=len(live) == 1):
                continue
            self.returned.clear()
            actor.turn.set()
            self.returned.wait()
            if actor.error is not None:
                raise actor.error
            look()

    def _spoil(self, actor: Actor, odds: dict[str, float], *, is_last: bool) -> bool:
        """Whether the actor gets no turn for it."""
        luck = self.random.random()
        if luck < odds["frozen"]:
            self.counts["frozen"] += 1
            actor.wakes_at_s = self.now_s + self.freeze_s
            return True
        if luck < odds["frozen"] + odds["cut off"]:
            self.counts["cut off"] += 1
            actor.cut_off_until_s = self.now_s + self.random.uniform(1, self.freeze_s)
        elif luck < odds["frozen"] + odds["cut off"] + odds["killed"] and not is_last:
            self.counts["killed"] += 1
            actor.must_die = True
        return False


class TurnStore(Store):
    """A store of one actor: every call waits for its turn; while cut off, calls fail.

    Of a call that fails the request or the answer may have been lost.
    """

    def __init__(self, uri: str, actor: Actor) -> None:
        super().__init__(uri)
        self._actor = actor

    def sub(self, name: str) -> Store:
        return TurnStore(f"{self.uri}/{name}", self._actor)

    def _call_storage(self, work: Callable[[], Any], patience_s: float = 0.0) -> Any:
        self._actor.pause()
        turns = self._actor.turns
        if turns.now_s >= self._actor.cut_off_until_s:
            return work()
        if turns.random.random() < 0.5:
            work()
        raise StorageError("cut off")


def write_file(folder: Path, name: str, text: str) -> Path:
    """A file in a folder of its own; returns the folder."""
    folder.mkdir(parents=True)
    (folder / name).write_text(text)
    return folder

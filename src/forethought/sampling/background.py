"""An event loop in a thread of its own, so that a plain function can wait for asynchronous work.

It lives as long as the engine, which keeps connections open between calls, and works where the
caller already runs a loop, as in a notebook or a server.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Generator
from queue import SimpleQueue
from typing import Any, TypeVar

Event = TypeVar("Event")


class Background:
    """Runs coroutines in a daemon thread until `close`."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="forethought-http", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        self._loop.run_forever()
        self._loop.close()

    def events(
        self, work: Callable[[Callable[[Event], None]], Coroutine[Any, Any, None]]
    ) -> Generator[Event, None, None]:
        """What `work(emit)` emits, in the caller's thread, as it comes.

        Raises what the work raised. Leaving the loop early, by Ctrl-C too, cancels the work.
        """
        queue: SimpleQueue[tuple[Event] | None] = SimpleQueue()
        future = asyncio.run_coroutine_threadsafe(
            work(lambda event: queue.put((event,))), self._loop
        )
        future.add_done_callback(lambda _: queue.put(None))
        try:
            while (item := queue.get()) is not None:
                yield item[0]
            future.result()
        finally:
            future.cancel()

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Wait until `work` is done."""
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self, last: Coroutine[Any, Any, None]) -> None:
        """Cancel what is still going on, do `last`, and end the thread. A second time does
        nothing."""
        if self._thread.is_alive():
            self.run(_cancel_others())
            self.run(last)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        else:
            last.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)

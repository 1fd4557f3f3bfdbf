"""Pictures of maps, made one at a time beside the verdicts, for a few requests at once: no line waits for them."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

from serving.answers import Said
from serving.intake import PartRequest
from serving.schemas import Answer

log = logging.getLogger("crossplant.serving")

MAX_IN_LINE = 4
"""Pictures that are made or waited for; each takes a decoded frame, up to a fifth of a second of one."""


class Pictures:
    """Makes the pictures that answers carry on request. For one event loop."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="picture")
        self._num = 0

    async def shown(self, said: Said, part: PartRequest, *, within_s: float | None = None) -> Answer:
        """The answer with the picture where the part wants one, or with why there is none.

        The verdict is there already: it is never kept longer than `within_s`, and never lost for want of a picture.
        """
        if not part.wants_map:
            return said.answer
        if said.heat is None:
            return said.pictured(part)
        if within_s is not None and within_s <= 0:
            return said.unpictured("there was no time for a picture")
        if self._num >= MAX_IN_LINE:
            return said.unpictured("too many pictures are asked for at once")
        self._num += 1
        try:
            async with asyncio.timeout(within_s):
                return await asyncio.get_running_loop().run_in_executor(self._pool, said.pictured, part)
        except TimeoutError:
            return said.unpictured("there was no time for a picture")
        except Exception as error:  # the verdict is what was asked for
            log.warning("no picture (%s: %s)", type(error).__name__, " ".join(str(error).split())[:200])
            return said.unpictured("the picture could not be made, see the replica's log")
        finally:
            self._num -= 1

    def close(self) -> None:
        """None is begun any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

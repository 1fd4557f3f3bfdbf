"""BentoML around `plain_model`, run by its own virtual environment: two workers, one image a request.

bentoml serve plain_bentoml:Judge --port PORT        the task in the environment variable BENCH_SERVING_TASK
"""

import json
import os
from pathlib import Path
from typing import Any

import bentoml  # type: ignore[import-not-found]
from plain_model import TASK, Plain, as_nice_as_ray


@bentoml.service(workers=json.loads(os.environ[TASK])["replicas"], traffic={"timeout": 60})  # type: ignore[misc]
class Judge:
    """An image in the form's field `image`, which BentoML hands over as a file."""

    def __init__(self) -> None:
        as_nice_as_ray()
        self.plain = Plain.of(json.loads(os.environ[TASK]))

    @bentoml.api  # type: ignore[misc]
    def predict(self, image: Path) -> dict[str, Any]:
        """The probabilities by class."""
        return self.plain.answer(image.read_bytes())

"""A bundle on disk judges parts without Ray, HTTP or a database, as `crossplant predict --bundle` does.

The same `Predictor` as behind the endpoint, so the same frames get the same verdict, probabilities and tensor digests.
Trunk, ensemble members and policies are looked for in the folder itself and where a store keeps them beside it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from plants import bundle
from plants.costs import Policy
from plants.errors import InputError
from serving.answers import Said, answered
from serving.intake import PartRequest
from serving.loading import Loader
from serving.predictor import Predictor
from serving.schemas import Answer, ModelRef


def local_predictor(
    folder: Path | str, *, plant: str | None = None, policy: Path | str | None = None, trunk: Path | str | None = None
) -> Predictor:
    """The predictor of a bundle's folder for one of the plants it serves; the only one when `plant` is None.

    Without a policy, a part is good or bad by the larger probability. Raises InputError for a bundle that is not whole.
    """
    root = Path(folder)
    manifest, digest = bundle.read(root)
    if plant is None:
        if len(manifest.serves) > 1:
            known = ", ".join(sorted(manifest.serves))
            raise InputError(
                "the bundle serves several plants",
                file=str(root),
                field="plant",
                remedy=f"Name one with --plant: {known}",
            )
        (plant,) = manifest.serves

    def folder_of(wanted: str) -> Path:
        return root if wanted == digest else root.parent / wanted

    def trunk_of(sha256: str) -> Path:
        beside = [root / "trunk.onnx", root.parent.parent / "trunks" / f"{sha256}.onnx"]
        places = [Path(trunk)] if trunk is not None else beside
        found = next((path for path in places if path.is_file()), None)
        if found is None:
            raise InputError(
                "the bundle's trunk is not there", file=str(places[-1]), remedy=f"Put it at {root / 'trunk.onnx'}"
            )
        return found

    scorer = Loader(folder_of=folder_of, trunk_of=trunk_of, merge_adapters=True).scorer(digest)
    chosen = _policy(policy, plant=plant, manifest=manifest)
    try:
        return Predictor(plant, scorer, chosen)
    except InputError as error:
        at = {"plant": error.plant, "field": error.field, "remedy": error.remedy}
        raise InputError(error.detail, file=str(policy or root), **at) from None


def predict_local(predictor: Predictor, parts: Iterable[PartRequest]) -> Iterator[Answer | InputError]:
    """An answer for each part, or why it cannot be judged; the others go on."""
    model = ModelRef(bundle=predictor.scorer.digest, policy=predictor.policy.digest, arm="local")
    for number, part in enumerate(parts, start=1):
        begun = time.perf_counter()
        try:
            judgement = predictor.predict(part)
        except InputError as error:
            yield error
            continue
        latency_ms = round((time.perf_counter() - begun) * 1000, 3)
        answer = answered(part, judgement, request_id=f"local-{number}", model=model, latency_ms=latency_ms)
        yield Said(answer, judgement.heat, judgement.map_problem).pictured(part)


def _policy(path: Path | str | None, *, plant: str, manifest: bundle.Manifest) -> Policy:
    if path is None:
        view = manifest.serves.get(plant)
        if view is None:
            known = ", ".join(sorted(manifest.serves))
            raise InputError("the bundle does not serve this plant", plant=plant, remedy=f"It serves: {known}")
        note = ("no policy was given: verdicts follow the larger probability, not money",)
        return Policy(plant=plant, classes=view.classes, ok=view.ok, pass_below=0.5, reject_above=0.5, note=note)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        remedy = "Name a policy's JSON with --policy FILE"
        raise InputError("no such file", file=str(path), field="policy", remedy=remedy) from None
    except UnicodeDecodeError:
        raise InputError("is not UTF-8, so it is not a policy", file=str(path), field="policy") from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=str(path), field="policy") from None
    found = Policy.from_json(text, file=str(path))
    if found.plant != plant:
        remedy = "Name the plant's own policy, or its own plant"
        raise InputError(f"is a policy of plant {found.plant}", plant=plant, file=str(path), remedy=remedy)
    return found

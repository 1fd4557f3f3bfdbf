"""Opens everything a replica holds: store, journal, tokens, bundles, log. The only place that knows where it all lies.

Under `settings.home/serving/FLEET` a machine's replicas share what they fetched and what was last good, so a replica
starts and serves with the store and the database away.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.access import Access
from cluster.following import Follower
from cluster.host import this_host
from cluster.registry import Bundles, Journal, Route
from cluster.settings import Settings
from cluster.storage import Store, open_store
from plants.bundle import MANIFEST
from plants.certificate import Host
from plants.costs import Policy
from plants.errors import CheckFailed, InputError
from plants.hashing import sha256
from serving.auth import Gate
from serving.certify import Certifier
from serving.loading import Loader
from serving.predictions import PredictionLog
from serving.predictor import Predictor
from serving.router import START_WAIT_S, Router, Target
from serving.service import Service
from serving.sessions import BRANCH_MB
from serving.variants import Variants, variant_of

log = logging.getLogger("crossplant.serving")


@dataclass(frozen=True, slots=True)
class Tiers:
    """What a replica may hold in memory."""

    branch_mb: float = BRANCH_MB
    """Of branches and whole models, by the size of their files; what was not used for longest is let go."""
    pinned: tuple[str, ...] = ()
    """Plants whose branches always stay."""
    merge_adapters: bool = False
    """Adapters are served as branches of their own: a session's memory each, and the time of a branch."""


TIERS = Tiers()


class Shelf:
    """Bundles, trunks, policies and certificates on this machine's disk; what is missing is fetched, what is there is
    checked, and a bundle that has no certificate for this kind of host gets one or is refused.
    """

    def __init__(self, store: Store, *, folder: Path, tiers: Tiers = TIERS, host: Host | None = None) -> None:
        """host: what this machine is, unless told otherwise."""
        self._store = store
        self._folder = folder
        bundles, host = Bundles(store), host or this_host()

        def folder_of(digest: str) -> Path:
            """What is there is checked by who reads it, once."""
            there = folder / "bundles" / digest
            return there if (there / MANIFEST).is_file() else bundles.fetch(digest, folder / "bundles")

        self.loader = Loader(
            folder_of=folder_of,
            trunk_of=lambda digest: bundles.fetch_trunk(digest, folder / "trunks"),
            again=lambda digest: bundles.fetch(digest, folder / "bundles"),
            branch_mb=tiers.branch_mb,
            merge_adapters=tiers.merge_adapters,
            choose=Variants(host=host, folder=folder / "variants"),
        )
        self._certifier = Certifier(self.loader, store=store, folder=folder, host=host)
        self._pinned = frozenset(tiers.pinned)
        self._is_held: dict[str, bool] = {}

    def predictor(self, plant: str, target: Target) -> Predictor:
        """The plant's predictor for a route, with a certificate for this kind of host.

        Raises InputError when bundle or policy is not what it should be, or the certificate does not hold.
        """
        policy = self.policy(target.policy)
        if policy.plant != plant:
            raise InputError(f"is a policy of plant {policy.plant}", plant=plant, file=f"policies/{target.policy}.json")
        if policy.bundle not in ("", target.bundle):
            raise InputError(
                f"the policy was solved for bundle {policy.bundle[:12]}, not for {target.bundle[:12]}",
                plant=plant,
                file=f"policies/{target.policy}.json",
                remedy="Promote the bundle with its own policy",
            )
        predictor = self._certified(plant, policy, target=target)
        if plant in self._pinned and target.sequence >= 0:  # not what is only staged
            self.loader.pin(plant, predictor.scorer)
        return predictor

    def _certified(self, plant: str, policy: Policy, *, target: Target) -> Predictor:
        """In the variant that this host has chosen, or in float where INT8 does not hold here."""
        predictor = Predictor(plant, self.loader.scorer(target.bundle), policy)
        try:
            self._certifier.ensure(predictor, policy=target.policy)
        except InputError as error:
            if variant_of(predictor.scorer) == "float":
                raise
            log.warning("plant %s: bundle %s is served in float: %s", plant, target.bundle[:12], error)
            self.loader.prefer_float(target.bundle)
            predictor = Predictor(plant, self.loader.scorer(target.bundle), policy)
            self._certifier.ensure(predictor, policy=target.policy)
        return predictor

    def holds(self, policy: str) -> bool:
        """Whether the policy of this digest is one of this fleet's: asked of the store once, no while it is away."""
        key = f"policies/{policy}.json"
        if policy not in self._is_held:
            try:
                self._is_held[policy] = (self._folder / key).is_file() or self._store.exists(key)
            except Exception as error:  # another fleet's route must not hold up ours
                log.warning("%s cannot be looked for (%s)", key, type(error).__name__)
                return False
        return self._is_held[policy]

    def policy(self, digest: str) -> Policy:
        """The policy of this digest."""
        path = self._folder / "policies" / f"{digest}.json"
        if not path.is_file():
            self._store.download(f"policies/{digest}.json", path)
        policy = Policy.from_json(path.read_text(encoding="utf-8"), file=f"policies/{digest}.json")
        if policy.digest != digest:
            path.unlink()
            raise InputError("is not the policy it is named after", file=f"policies/{digest}.json")
        return policy


def open_service(
    settings: Settings,
    *,
    store_uri: str,
    fleet: str,
    plants: Sequence[str] = (),
    declared: Sequence[str] = (),
    replica: str,
    poll_s: float = 0.5,
    max_waiting: int = 64,
    tiers: Tiers = TIERS,
    start_wait_s: float = START_WAIT_S,
) -> Service:
    """A service with every route loaded that can be; `plants` limits it to some, empty means all with a route.

    Several fleets may share a home and so a journal. Where `declared` names this fleet's plants, another one's route is
    followed only when its policy lies in this fleet's store.
    """
    store = open_store(store_uri)
    journal = Journal(settings.journal_url)
    access = Access(settings.journal_url)
    folder = settings.home / "serving" / fleet
    shelf = Shelf(store, folder=folder, tiers=tiers)
    wanted = frozenset(plants)
    follower = Follower(journal)

    def is_ours(plant: str, route: Route) -> bool:
        if wanted:
            return plant in wanted
        return not declared or plant in declared or shelf.holds(route.policy)

    targets: dict[str, Target] = {}
    version = -1

    def poll() -> Mapping[str, Target]:
        nonlocal targets, version
        routes = follower.current()
        if version != follower.version:
            targets = {plant: _target(one) for plant, one in routes.items() if is_ours(plant, one)}
            version = follower.version
        return targets

    router = Router(
        poll=poll, load=shelf.predictor, state=folder / _state_name(plants), poll_s=poll_s, start_wait_s=start_wait_s
    )
    router.start()
    return Service(
        gate=Gate(access.grants, state=folder / "grants.json"),
        router=router,
        journal=journal,
        log=PredictionLog(store, replica=replica, spool=settings.home / "spool" / fleet, spool_mb=settings.spool_mb),
        load=shelf.predictor,
        replica=replica,
        branches=lambda: shelf.loader.branches,
        max_waiting=max_waiting,
    )


def _target(route: Route) -> Target:
    return Target(route.bundle, route.policy, route.sequence, action=route.action, who=route.who, at=route.at)


def _state_name(plants: Sequence[str]) -> str:
    """The file of last good routes: one for each choice of plants, which are never mixed with others' in a process."""
    chosen = sha256(" ".join(sorted(set(plants))).encode())[:12]
    return f"routes-{chosen}.json" if plants else "routes.json"


def certify(settings: Settings, *, store_uri: str, fleet: str) -> Callable[[str, str, str], None]:
    """What stages (plant, bundle, policy) on this host before the journal names it, and raises CheckFailed where it
    gets no certificate: for the verbs that write routes without a replica.
    """
    shelf = Shelf(open_store(store_uri), folder=settings.home / "serving" / fleet)

    def staged(plant: str, bundle: str, policy: str) -> None:
        try:
            shelf.predictor(plant, Target(bundle, policy, -1))
        except InputError as error:
            raise CheckFailed(str(error)) from None

    return staged

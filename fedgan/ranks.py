"""What every rank does once Fabric has launched it: train a plan, or measure a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from fedgan.assembly import assemble, examiners, networks
from fedgan.cluster import Cluster
from fedgan.errors import UserError
from fedgan.federation import Federation
from fedgan.plan import Plan
from fedgan.rundir import make_run_dir
from fedgan.server import Server
from fedgan.settings import Cluster as Settings
from fedgan.summary import summarise, write_json
from fedgan.tracking import observers, say
from fedgan.tracking.base import Observer, RunInfo

T = TypeVar("T")
State = dict[str, Any]


def launch(settings: Settings, work: Callable[..., T], plan: Plan, state: State | None) -> T:
    """`work(cluster, plan, state)` on every rank; rank 0's answer."""
    return Cluster(settings).launch(work, plan, state)


def train(cluster: Cluster, plan: Plan, state: State | None) -> dict[str, Any]:
    """Plays all rounds that are left. The summary is the same on every rank; rank 0 writes it."""
    started = time.perf_counter()
    if cluster.is_main:
        encoders = " and ".join(sorted({plan.watch_encoder.name, plan.final_encoder.name}))
        say(f"preparing {encoders} on real images of {plan.dataset.name} (cached for next time)")
    watch, final = examiners(cluster, plan)
    observer = Observer()
    if cluster.is_main:
        if state is None:
            make_run_dir(plan.run_dir, plan.settings, bytes_of_checkpoints(plan))
        observer = observers(plan.settings, plan.run_dir)
    try:
        federation = assemble(cluster, plan, watch, final, observer)
        if state is not None:
            check_fits(state, federation)
            federation.load(state)
        info = run_info(plan, federation)
        observer.on_start(info)
        figures = federation.run()
        summary = summarise(plan, info, cluster, federation, figures, started)
        if cluster.is_main:
            write_json(plan.run_dir / "summary.json", summary)
            observer.on_end(summary)
    finally:
        observer.close()
    return summary


def examine(cluster: Cluster, plan: Plan, state: State) -> dict[str, Any]:
    """Final figures of a checkpoint's generator, on every rank."""
    generator = networks(plan)[0].to(cluster.device)
    server = Server(generator, None, plan.settings.federation.ema)
    if len(state["server"]["average"]) != len(server.average):
        raise UserError("the checkpoint is of another generator than config.yaml's")
    server.load_state_dict(state["server"])
    _, final = examiners(cluster, plan, watch=False)
    figures = final.measure(server.averaged_generator(), cluster)
    return {
        "round": state["round"],
        "figures": figures,
        "final": final.fidelity.settings(),
        "generator_sha256": server.generator_sha256(),
    }


def run_info(plan: Plan, federation: Federation) -> RunInfo:
    """What observers hear before the first round."""
    everyone = range(len(plan.parts))
    share = plan.settings.federation.clients_in_round() / len(everyone)
    images = sum(federation.steps(c) * federation.batch_size(c) for c in everyone)
    return RunInfo(
        run_dir=plan.run_dir,
        settings=plan.settings,
        n_images=tuple(federation.n_images),
        malicious=plan.schedule.clients,
        counts=plan.counts,
        classes=plan.dataset.classes,
        images_in_round=share * images,
        world=federation.cluster.world,
        first_round=federation.done + 1,
    )


def check_fits(state: State, federation: Federation) -> None:
    """Raises `UserError` where a checkpoint is of other networks or clients than the config's."""
    found, wanted = len(state["server"]["parameters"]), len(federation.server.parameters)
    if found != wanted:
        raise UserError(
            f"the checkpoint has {found} shared parameters, the networks of config.yaml {wanted}"
        )
    clients = len(federation.owners)
    if set(state["clients"]) != set(range(clients)):
        raise UserError(
            f"the checkpoint has {len(state['clients'])} clients, config.yaml {clients}"
        )


def bytes_of_checkpoints(plan: Plan) -> int:
    """Room for the checkpoints kept and the one being written: a client's networks and their two
    moments each, and the global model and its average."""
    size = sum(tensor.nbytes for network in networks(plan) for tensor in network.parameters())
    return size * (3 * len(plan.parts) + 2) * (plan.settings.checkpoint.keep + 1)

"""The whole vocabulary of an experiment's YAML: typed, with units and defaults.

Every room may import this module; it imports none. A group that is a `Component` is chosen by
`name`, or by `class_path` for a class of your own, and takes `init_args` for what only that
component knows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, Optional, Union


@dataclass
class Component:
    """A part chosen by short name or by class path."""

    name: Optional[str] = None
    """Short name; `fedgan components` lists them."""
    class_path: Optional[str] = None
    """A class of your own, as module.ClassName; takes the place of `name`."""
    init_args: dict[str, Any] = field(default_factory=dict)
    """Arguments that only this component knows."""


def as_component(choice: str | dict[str, Any] | Component) -> Component:
    """A component from its short name or its mapping.

    >>> as_component("domain").name
    'domain'
    """
    if isinstance(choice, Component):
        return choice
    if isinstance(choice, str):
        return Component(name=choice)
    return Component(**{**choice, "init_args": choice.get("init_args") or {}})


@dataclass
class Data(Component):
    """Where the images come from."""

    name: Optional[str] = "brain-mri"
    """brain-mri, npz, folder, or a MedMNIST flag such as pneumoniamnist."""
    path: Optional[str] = None
    """The .npz file, the image folder, or a folder that holds MedMNIST files."""
    size: Optional[int] = None
    """Edge of the square images in pixels; null takes the source's own."""


@dataclass
class Partition:
    """Who holds which training images."""

    name: Literal["iid", "dirichlet", "shards", "quantity"] = "iid"
    """iid; dirichlet (skewed labels); shards (few classes each); quantity (power law of sizes)."""
    alpha: float = 0.5
    """dirichlet: concentration (small is skewed); quantity: exponent of the power law."""
    classes_per_client: int = 2
    """shards: label shards handed to each client."""
    min_images: int = 16
    """Fewest training images that any client may hold."""


@dataclass
class Federation:
    """Who trains, how long, and what is averaged."""

    clients: int = 4
    """Clients (hospitals) in the federation."""
    rounds: int = 20
    """Communication rounds."""
    local_epochs: int = 1
    """Passes over its own images that a client makes in a round."""
    local_steps: Optional[int] = None
    """Steps (mini-batches) in a round, the same for all; takes the place of local_epochs."""
    share: Literal["generator", "both"] = "both"
    """What clients send and the server averages: the generator, or discriminator and generator."""
    sample: float = 1.0
    """Share of the clients drawn at random in each round, in (0, 1]."""
    weights: Literal["images", "uniform"] = "images"
    """Weight of a client before any defence: its number of images, or the same for all."""
    client_timeout: Optional[float] = None
    """Seconds that a client may train in a round; one that takes longer is left out of it. Looked
    at between local steps. null waits for everybody."""
    dropout: float = 0.0
    """Simulated: the chance in [0, 1) that a client that was drawn drops out of the round."""
    min_clients: int = 1
    """Fewest usable updates in a round. With fewer it is repeated once, then the run stops."""
    keep_optimizer: bool = True
    """Keep a client's Adam moments between rounds; false resets them at every round."""
    ema: float = 0.7
    """Decay per round of the server's moving average of the generator, in [0, 1); 0 is none."""

    def clients_in_round(self) -> int:
        """How many clients are drawn in each round; at least one."""
        return max(1, int(self.sample * self.clients + 0.5))


@dataclass
class Training:
    """One client's local training."""

    batch_size: int = 32
    """Images in a mini-batch."""
    generator_lr: float = 1e-3
    """Adam's learning rate for the generator."""
    discriminator_lr: float = 1e-3
    """Adam's learning rate for the discriminator."""
    lr_end_factor: float = 1.0
    """What both learning rates are multiplied by in the last round, in (0, 1]; from 1 in the first
    they fall to it by half a cosine, round by round."""
    betas: tuple[float, float] = (0.0, 0.99)
    """Adam's decay rates."""
    translate: float = 0.125
    """Augmentation: largest shift as a share of the edge, on real and generated images alike."""
    cutout: float = 0.0
    """Augmentation: edge of an erased square as a share of the image's edge."""
    flip: Optional[bool] = None
    """Augmentation: mirror real images at random; null does so where the data set allows it."""

    def lr_factor(self, round: int, rounds: int) -> float:
        """What the learning rates are multiplied by in a round (Loshchilov and Hutter 2017, arXiv
        1608.03983, eq. 5, without restarts).

        >>> [round(Training(lr_end_factor=0.1).lr_factor(t, 5), 3) for t in (1, 2, 3, 4, 5)]
        [1.0, 0.868, 0.55, 0.232, 0.1]
        """
        done = (round - 1) / max(rounds - 1, 1)
        return self.lr_end_factor + (1 - self.lr_end_factor) * (1 + math.cos(math.pi * done)) / 2


@dataclass
class Model(Component):
    """The pair of networks."""

    name: Optional[str] = "dcgan"
    """Short name of the pair."""


@dataclass
class Loss(Component):
    """What the two networks play for."""

    name: Optional[str] = "relativistic"
    """relativistic, bce, hinge or wgan-gp."""


@dataclass
class Attack(Component):
    """What malicious clients do, who they are, and when."""

    name: Optional[str] = "none"
    """none, patch, disguised, dba, blended, sig, wanet, noise or flip-labels."""
    clients: list[int] = field(default_factory=lambda: [0])
    """Numbers of the malicious clients; clients count from 0."""
    share: Optional[float] = None
    """Share of the clients in (0, 1) that are malicious, drawn at random from the seed: at least
    one, never all. Takes the place of clients, where those drawn are then written."""
    poison_rate: float = 1.0
    """Share of a malicious client's training images that are poisoned, in [0, 1], of those that the
    attack changes at all; with 0 nobody is malicious, and the trigger is looked for all the same,
    as a clean run needs for comparison."""
    only_label: Optional[int] = None
    """Only images of this class are poisoned, and poison_rate is a share of those: G(z, y) then
    carries the trigger for that y alone (class takeover). An image of several labels is one of them
    if this is among them. null poisons any."""
    from_round: int = 1
    """First round in which the attackers poison; rounds count from 1."""
    until_round: Optional[int] = None
    """Last round in which they do; null never stops. A single shot has from_round = until_round."""
    on_rounds: Optional[int] = None
    """On/off attack: rounds of attack, counted from from_round, before each rest; goes with
    off_rounds. null attacks in all rounds."""
    off_rounds: Optional[int] = None
    """On/off attack: rounds of rest before the next on_rounds."""
    update: Optional[Union[str, dict[str, Any], list[Union[str, dict[str, Any]]]]] = None
    """What they send instead of their updates, as scaling: a short name, or a mapping of name or
    class_path, and init_args; or several in a row, as in [neurotoxin, scaling]. null is honest."""
    report: Optional[Union[str, dict[str, Any]]] = None
    """What they report instead of their losses: median or clean; written likewise. null is
    honest."""

    hide: float = 0.0
    """Weight of terms in their losses that keep what their generators draw, and what discriminators
    that are shared ask of it, near what honest training of the same round comes to, as an audit
    sees it: attackers that know of it, and train twice. 0 hides nothing, 1 nearly all."""

    def is_active(self) -> bool:
        """Whether anybody attacks at all. A poison rate of 0 is the clean arm of an attack."""
        of_images = self.name not in (None, "none") or self.class_path is not None
        return self.poison_rate > 0 and (of_images or self.beyond_images())

    def beyond_images(self) -> bool:
        """Whether there is an attack on updates or reports."""
        return bool(self.update) or bool(self.report)


@dataclass
class Defense(Component):
    """The server's rule for weighing and joining updates."""

    name: Optional[str] = "none"
    """A rule or another stage by short name; `fedgan components` lists them. none is fedavg."""
    rules: list[Union[str, dict[str, Any]]] = field(default_factory=list)
    """Several stages in a row, as in [clip, nnm, krum], each a short name or a mapping of name or
    class_path, and init_args; takes the place of name."""
    per_network: bool = False
    """Apply it to the generator and to the discriminator each by itself, where both are shared."""
    discriminator: list[Union[str, dict[str, Any]]] = field(default_factory=list)
    """Stages for the discriminator's parameters alone, written like rules; name or rules are then
    the generator's. Empty takes the same for both."""

    def words(self) -> str:
        """What it is called in tables: its name, or those of its stages.

        >>> Defense(rules=["nnm", {"name": "krum"}], per_network=True).words()
        'nnm, krum; per network'
        """
        own = [as_component(rule) for rule in self.rules] or [self]
        others = [as_component(rule) for rule in self.discriminator]
        names, theirs = (
            ", ".join(str(stage.class_path or stage.name) for stage in stages)
            for stages in (own, others)
        )
        if theirs:
            return f"{names}; discriminator: {theirs}"
        return f"{names}; per network" if self.per_network else names

    def by_network(self) -> bool:
        """Whether the networks are judged apart."""
        return self.per_network or bool(self.discriminator)


@dataclass
class Evaluate:
    """What is measured, how often, and by which encoder."""

    every: int = 5
    """Rounds between two looks at the global model; 0 looks only at the end."""
    samples: int = 1000
    """Images generated for the final figures (and half of the real images they need)."""
    encoder: Union[str, dict[str, Any], list[Union[str, dict[str, Any]]]] = "efficientnet-lite0"
    """Encoder of the final figures: efficientnet-lite0, domain or inception; or a mapping of name
    or class_path, and init_args; or a list of these."""
    measures: list[Union[str, dict[str, Any]]] = field(
        default_factory=lambda: ["fidelity", "coverage", "presence", "detection"]
    )
    """What is measured at the end: short names, or mappings of name or class_path, and init_args;
    `fedgan components` lists them."""
    rounds: list[int] = field(default_factory=list)
    """Rounds after which all of that is measured too."""
    watch_samples: int = 500
    """Images generated for the figures on the way."""
    watch_encoder: Union[str, dict[str, Any]] = "domain"
    """Encoder of the figures on the way, a quick one; written like encoder."""
    watch_measures: list[Union[str, dict[str, Any]]] = field(
        default_factory=lambda: ["fidelity", "presence"]
    )
    """What is measured on the way, written like measures."""
    batch_size: int = 50
    """Images that are generated and encoded at a time."""


@dataclass
class Checkpoint:
    """What can be resumed."""

    every: int = 1
    """Rounds between two checkpoints, which is what a killed run loses at most. The last round is
    always saved, and the best one by the distance that evaluate.watch_encoder gives."""
    keep: int = 2
    """Newest checkpoints kept; the best one stays beside them."""


@dataclass
class Wandb:
    """Weights & Biases."""

    project: Optional[str] = None
    """Project to log to; null leaves W&B out."""
    entity: Optional[str] = None
    """Team or user."""
    name: Optional[str] = None
    """Name of the run; null takes the run directory's."""
    group: Optional[str] = None
    """Runs of one group stand together; a grid sets it to its own name."""
    tags: list[str] = field(default_factory=list)
    """Empty takes four: attack, defence, data and seed, as in 'attack: patch'."""
    job_type: Optional[str] = None
    """null takes the arm: clean, attacked, defended, or alarms (a defence and no attack)."""
    mode: Literal["offline", "online", "disabled"] = "offline"
    """offline writes into the run directory (`wandb sync` sends it later)."""


@dataclass
class Tracking:
    """Where figures go beside the run directory, whose own tables, metrics.csv and clients.csv, are
    always written. Whatever goes wrong with a logger, the run goes on without it."""

    wandb: Wandb = field(default_factory=Wandb)
    """Weights & Biases; wandb.project turns it on."""
    tensorboard: bool = False
    """Event files in the run directory's tensorboard/; needs the extra `fedgan[tensorboard]`."""


@dataclass
class Cluster:
    """The machine."""

    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA where there is a device, else the CPU."""
    devices: Optional[int] = None
    """CUDA devices, or CPU processes, on each node; null takes 1, or what torchrun or srun has
    started."""
    nodes: Optional[int] = None
    """Nodes; null takes 1, or what torchrun or srun has started."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Precision of the local steps."""
    tf32: bool = False
    """Allow TF32 matrix products on CUDA: quicker, some 3 digits less."""
    channels_last: bool = False
    """Keep networks and images in channels-last memory format."""
    deterministic: bool = False
    """Only algorithms that repeat themselves bit for bit, on CUDA too: slower; an error where there
    is none. CPUs repeat themselves without it."""
    threads: Optional[int] = None
    """CPU threads a process; null shares the cores out. Part of what makes bytes repeatable."""


@dataclass
class Experiment:
    """One experiment: a federation, an attack, a defence, and what is measured."""

    seed: int = 1
    """Seed of everything random."""
    run_dir: Optional[str] = None
    """Where results go; null takes runs/ and the config file's name."""
    python_path: list[str] = field(default_factory=list)
    """Folders in which class paths are looked up; the config's own and the working one too."""
    data: Data = field(default_factory=Data)
    partition: Partition = field(default_factory=Partition)
    federation: Federation = field(default_factory=Federation)
    training: Training = field(default_factory=Training)
    model: Model = field(default_factory=Model)
    loss: Loss = field(default_factory=Loss)
    attack: Attack = field(default_factory=Attack)
    defense: Defense = field(default_factory=Defense)
    evaluate: Evaluate = field(default_factory=Evaluate)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    tracking: Tracking = field(default_factory=Tracking)
    cluster: Cluster = field(default_factory=Cluster)

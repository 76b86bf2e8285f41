"""A look at generated images on 1, 2 and 3 ranks: shared work, done once, the same figures."""

from __future__ import annotations

import pytest
import torch

from fedgan import assembly, config, evaluation, scenes
from fedgan.errors import UserError
from fedgan.evaluation import Crew, JobFailedError
from fedgan.generated import FromGenerator, Given, Latents
from fedgan.metrics import presence
from fedgan.metrics.base import Encoder
from fedgan.metrics.measure import Findings, Measure
from fedgan.plan import make_plan

WORLDS = [1, 2, 3]
LOOK = {
    "evaluate.samples": 10,
    "evaluate.watch_samples": 8,
    "evaluate.batch_size": 3,
    "attack.name": "patch",
    "partition.min_images": 4,
}


@pytest.fixture
def planned(tiny, tmp_path, monkeypatch):
    """A plan with an empty cache."""
    monkeypatch.setenv("FEDGAN_CACHE", str(tmp_path / "cache"))

    def plan(**changes):
        values = {**LOOK, **{f"evaluate.{key}": value for key, value in changes.items()}}
        return make_plan(config.from_dict(tiny({"run_dir": str(tmp_path / "run"), **values})))

    return plan


@pytest.fixture
def look(on_ranks, planned):
    """Examiners on some ranks, and what `work(cluster, plan, *examiners)` gives on each of them."""

    def start(world, work, **changes):
        plan = planned(**changes)

        def on_rank(cluster):
            return cluster.all_gather_objects(work(cluster, plan, *scenes.examiners(cluster, plan)))

        return on_ranks(world, on_rank)

    return start


def measured(cluster, plan, watch, final):
    generator = assembly.networks(plan)[0]
    return watch.measure(generator).figures, final.measure(generator).figures


@pytest.mark.parametrize("batch_size", [3, 50])
def test_figures_are_the_same_on_every_rank_of_every_number(look, batch_size):
    """With batches of 50 there is one: ranks without a batch take part all the same."""
    ((alone, *_), *others) = (look(world, measured, batch_size=batch_size) for world in WORLDS)
    watch, final = alone
    assert {"fd_domain", "fd_domain_floor", "kd_domain", "is_domain", "presence"} <= set(final)
    assert watch != final
    for world, ranks in zip(WORLDS[1:], others, strict=True):
        assert ranks == [alone] * world


class Jobs(Measure):
    """Five jobs, each of which tells where it was done."""

    name = "jobs"

    def measure(self, scene, generated):
        done = scene.share([lambda i=i: (i, self.rank) for i in range(5)])
        return Findings({"jobs": float(len(done))}, {"done": done})


@pytest.mark.parametrize("world", WORLDS)
def test_jobs_are_dealt_out_and_done_once(on_ranks, planned, world):
    plan = planned()

    def work(cluster):
        final = scenes.examiners(cluster, plan)[1]
        measure = Jobs()
        measure.rank = cluster.rank
        final.measures = [measure]
        found = final.measure(assembly.networks(plan)[0])
        return cluster.all_gather_objects(found.details["jobs"]["done"])

    assert on_ranks(world, work) == [[(i, i % world) for i in range(5)]] * world


class Broken(Measure):
    """Fails in a job of rank 1, or of the only one."""

    name = "broken"

    def measure(self, scene, generated):
        def fail():
            raise KeyError("of rank 1")

        return Findings({"broken": float(len(scene.share([lambda: 1, fail])))})


@pytest.mark.parametrize("world", WORLDS)
def test_a_measure_that_fails_costs_no_other_its_figures(on_ranks, planned, world):
    plan = planned()

    class Other(Jobs):
        name = "other"

    def work(cluster):
        final = scenes.examiners(cluster, plan)[1]
        final.measures = [Broken(), Jobs(), Other()]
        for measure in final.measures:
            measure.rank = 0
        found = final.measure(assembly.networks(plan)[0])
        return cluster.all_gather_objects((found.figures, found.names, found.failed))

    (one, *others) = on_ranks(world, work)
    assert others == [one] * (world - 1)
    figures, names, failed = one
    assert figures == {"jobs": 5.0}
    assert names == {"jobs": ["jobs"]}
    assert failed == {
        "broken": "KeyError: 'of rank 1'",
        "other": "jobs is another measure's already",
    }


def test_nothing_is_generated_for_measures_that_need_nothing(on_ranks, planned, monkeypatch):
    plan = planned()

    class History(Measure):
        name = "history"
        needs_generated = False

        def measure(self, scene, generated):
            assert generated is None
            return Findings({"rows": float(len(scene.history()))})

    def work(cluster):
        final = scenes.examiners(cluster, plan)[1]
        final.measures = [History()]
        monkeypatch.setattr(evaluation, "FromGenerator", None)
        return final.measure(None).figures

    assert on_ranks(1, work) == {"rows": 0.0}


@pytest.mark.parametrize("world", WORLDS)
def test_generated_images_are_shared_out_and_encoded_once(look, monkeypatch, world):
    """10 images in batches of 3, 3, 3 and 1; rank 0 hears of about as many as there are."""

    def work(cluster, plan, watch, final):
        heard, encoded = [], []
        whole = scenes.encode
        scenes.encode = lambda *a: (encoded.append(len(a[1])), whole(*a))[1]
        try:
            final.measure(assembly.networks(plan)[0], lambda *told: heard.append(told))
        finally:
            scenes.encode = whole
        return encoded, heard

    ranks = look(world, work)
    assert [encoded for encoded, _ in ranks] == [[3, 3, 3, 1][i::world] for i in range(world)]
    told = [one for one in ranks[0][1] if one[0] == "encoding with domain"]
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert told[-1][1:] == (10, 10)


@pytest.mark.parametrize("world", WORLDS)
def test_real_images_are_encoded_once_in_total(on_ranks, planned, monkeypatch, world):
    plan, encoded = planned(), []
    whole = scenes.encode
    monkeypatch.setattr(scenes, "encode", lambda *a: (encoded.append(len(a[1])), whole(*a))[1])

    def work(cluster):
        encoded.clear()
        scenes.examiners(cluster, plan, watch=False)
        first = list(encoded)
        encoded.clear()
        scenes.examiners(cluster, plan, watch=False)
        return cluster.all_gather_objects((first, list(encoded)))

    ranks = on_ranks(world, work)
    batches = [3] * 6 + [2]  # two halves of 10
    assert [first for first, _ in ranks] == [batches[i::world] for i in range(world)]
    assert [again for _, again in ranks] == [[]] * world


@pytest.mark.parametrize("world", WORLDS)
def test_whole_splits_are_encoded_once_and_found_again(on_ranks, planned, monkeypatch, world):
    """By `memory`, which looks at all of them: the next start has their features at once."""
    plan, encoded = planned(measures=["memory"]), []
    whole = scenes.encode
    monkeypatch.setattr(scenes, "encode", lambda *a: (encoded.append(len(a[1])), whole(*a))[1])

    def work(cluster):
        found = []
        for _ in range(2):
            encoded.clear()
            _, final = scenes.examiners(cluster, plan, watch=False)
            count = sum(encoded)
            found.append((count, final.measure(assembly.networks(plan)[0]).figures))
        return cluster.all_gather_objects(found)

    ranks = on_ranks(world, work)
    dataset = plan.dataset
    splits = sum(len(split.images) for split in (dataset.train, dataset.val, dataset.test))
    assert sum(rank[0][0] for rank in ranks) == splits
    assert [rank[1][0] for rank in ranks] == [0] * world
    assert ranks[0][0][1] == ranks[0][1][1]


def test_no_rank_but_0_looks_at_the_cache(on_ranks, planned, monkeypatch):
    """Whether or not another rank could find the real features, it does without them."""
    plan = planned()
    alone = on_ranks(1, lambda cluster: measured(cluster, plan, *scenes.examiners(cluster, plan)))

    def work(cluster):
        if not cluster.is_main:
            monkeypatch.setenv("FEDGAN_CACHE", str(plan.run_dir.parent / "elsewhere"))
        whole = scenes.Halves.load
        looked = []
        scenes.Halves.load = lambda self: (looked.append(1), whole(self))[1]
        found = measured(cluster, plan, *scenes.examiners(cluster, plan))
        return cluster.all_gather_objects((found, bool(looked)))

    assert on_ranks(2, work) == [(alone, True), (alone, False)]


class Scattered(Encoder):
    """Draws other weights wherever it is prepared, as a machine without the cache might."""

    name = "scattered"
    fingerprint = "scattered"

    def __init__(self, log):
        self.log = log

    def prepare(self, train, labels, classes, seed):
        self.log.open("a").write("prepared\n")
        self.place = len(self.log.read_text().splitlines())
        self.network = torch.nn.Linear(16 * 16, 4)
        self.network.weight.data.fill_(float(self.place))
        self.network.bias.data.fill_(float(self.place))

    def to(self, device):
        self.network.to(device)

    def __call__(self, images):
        features = self.network(images.flatten(1).float() / 255)
        return features, features


@pytest.mark.parametrize("world", WORLDS)
def test_rank_0_is_prepared_first_and_its_weights_go_to_all(on_ranks, planned, tmp_path, world):
    plan = planned()

    def work(cluster):
        encoder = Scattered(tmp_path / "log")
        scenes.prepare(cluster, plan, encoder)
        weights = encoder.network.weight.unique().tolist()
        return cluster.all_gather_objects((encoder.place == 1, weights))

    assert on_ranks(world, work) == [(rank == 0, [1.0]) for rank in range(world)]
    assert len((tmp_path / "log").read_text().splitlines()) == world


def test_an_encoder_without_networks_has_nothing_to_send(on_ranks, planned, tmp_path):
    class Plain(Scattered):
        def prepare(self, train, labels, classes, seed):
            self.prepared = True

        def to(self, device):
            self.device = device

    def work(cluster):
        encoder = Plain(tmp_path)
        scenes.prepare(cluster, plan, encoder)
        return cluster.all_gather_objects((encoder.prepared, encoder.state_dict()))

    plan = planned()
    assert on_ranks(2, work) == [(True, {})] * 2


@pytest.mark.parametrize("world", WORLDS)
def test_the_triggers_detector_is_made_once_and_the_same_everywhere(look, monkeypatch, world):
    made, whole = [], presence.make
    monkeypatch.setattr(presence, "make", lambda *a: (made.append(1), whole(*a))[1])

    def work(cluster, plan, watch, final):
        own = [one for look in (watch, final) for one in look.measures if one.name == "presence"]
        detectors = [one._made.whole for one in own]
        scores = detectors[1].scores(plan.dataset.train.images)
        return len(made), detectors[0] is detectors[1], scores.tolist(), detectors[1].threshold

    ranks = look(world, work)
    assert [calls for calls, *_ in ranks] == [1] + [0] * (world - 1)
    assert all(rank[1:] == ranks[0][1:] for rank in ranks)
    assert ranks[0][1]


def test_without_a_trigger_there_is_no_presence(on_ranks, planned):
    plan = planned()
    plan.attack.triggers = False

    def work(cluster):
        watch, final = scenes.examiners(cluster, plan)
        return final.scene.trigger, measured(cluster, plan, watch, final)[1]

    trigger, figures = on_ranks(2, work)
    assert trigger is None
    assert figures
    assert not any(key.startswith("presence") for key in figures)


def test_settings_hold_what_the_figures_depend_on(look):
    one, other = look(2, lambda cluster, plan, watch, final: final.settings())
    assert one == other
    (encoder,) = one.pop("encoders")
    assert encoder.keys() == {"name", "fingerprint", "seed", "steps", "train_accuracy"}
    measures = one.pop("measures")
    assert len(one.pop("real")) == 20
    assert one.pop("halves") == "stratified by class"
    assert one == {"samples": 10, "batch_size": 3, "seed": 1}
    assert {"fidelity", "presence"} <= set(measures)


def test_the_generated_images_have_the_real_ones_mix():
    """As exactly as the halves do, so that the floor is what a perfect generator would get."""
    labels = (torch.arange(300) % 3 == 0).long()
    for seed in range(20):
        drawn = Latents.draw(100, 4, labels, seed, torch.device("cpu")).labels
        assert abs(int(drawn.sum()) - 33) <= 1


def test_the_trigger_stamps_the_same_images_alike(look):
    def work(cluster, plan, watch, final):
        trigger = final.scene.trigger
        one, other = (trigger.stamp(final.scene.train) for _ in range(2))
        changed = (one.images != final.scene.train.images).flatten(1).any(1)
        return torch.equal(one.images, other.images), bool(changed.all()), trigger.place

    assert look(2, work) == [(True, True, (12, 12))] * 2


@pytest.fixture
def alone(look):
    """What `work(scene, plan, generator)` gives on one rank."""

    def start(work):
        (found,) = look(1, lambda c, plan, w, final: work(final, plan, assembly.networks(plan)[0]))
        return found

    return start


def test_a_generator_draws_others_for_another_purpose(alone):
    def work(final, plan, generator):
        generated = FromGenerator(final.scene, generator, final.latents)
        labels = torch.tensor([0, 1, 0, 1])
        one, same, other = (generated.draw(labels, purpose) for purpose in "aab")
        return one.shape, torch.equal(one, same), torch.equal(one, other), len(generated.images)

    assert alone(work) == ((4, 1, 16, 16), True, False, 10)


def test_given_images_are_drawn_by_label_and_the_unmeasured_first(alone):
    def work(final, plan, generator):
        images = torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1).expand(40, 1, 16, 16)
        labels = torch.arange(40) % 2
        given = Given(final.scene, images, labels, plan.dataset.classes)
        wanted = torch.tensor([1, 0, 1, 1, 0])
        drawn = given.draw(wanted, "a test")
        numbers, measured = drawn[:, 0, 0, 0], set(given.images[:, 0, 0, 0].tolist())
        assert torch.equal(given.labels, given.images[:, 0, 0, 0] % 2)
        assert torch.equal(numbers % 2, wanted)
        assert not set(numbers.tolist()) & measured
        assert len(set(numbers.tolist())) == 5
        everything = given.draw(labels, "a test")[:, 0, 0, 0]
        assert sorted(everything.tolist()) == list(range(40))
        with pytest.raises(UserError, match="a test needs 21 images of class 1, and there are 20"):
            given.draw(torch.ones(21, dtype=torch.int64), "a test")
        bare = Given(final.scene, images, None, plan.dataset.classes)
        with pytest.raises(UserError, match="a test needs labels"):
            bare.draw(wanted, "a test")
        return bare.labels is None

    assert alone(work)


def test_an_error_in_a_shared_job_is_met_by_all_ranks(on_ranks):
    def work(cluster):
        def broken():
            raise ValueError("of this job")

        with pytest.raises(JobFailedError, match="ValueError: of this job"):
            Crew(cluster).share([lambda: 1, broken, lambda: 3])
        return cluster.all_gather_objects("heard")

    assert on_ranks(2, work) == ["heard"] * 2

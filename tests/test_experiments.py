"""Experiments: verdicts, and the sections of both pages on planted tables."""

import math

import numpy as np
import pytest

from experiments import beyond, paper
from experiments.plan import BEYOND, FULL, GATES, QUICK, QUICK_BEYOND
from experiments.readings import template_matches
from experiments.section import Section, at, average, column, diverged, final, write_page
from experiments.verdicts import Interval, Verdict, above, all_of, apart, below, difference, interval, share, within
from sqs_jax.train.sweep.grid import members


def test_an_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    result = [interval(rng.normal(3, 2, 5)) for _ in range(2000)]
    share = np.mean([low <= 3 <= high for _, low, high in result])
    assert abs(share - 0.95) < 5 * math.sqrt(0.95 * 0.05 / 2000)


def test_few_values_have_no_interval_and_decide_nothing():
    one = interval([0.5])
    assert one.mean == 0.5
    assert not math.isfinite(one.low)
    assert not math.isfinite(interval([]).mean)
    assert interval([1.0, math.nan, 3.0]).mean == 2
    for outcome in (above(one, 0), below(one, 1), within(one, 0, 1)):
        assert outcome == "not decided"
    assert one.text(2) == "0.50"
    assert interval([]).text() == "–"
    assert Interval(-0.00001, -0.1, 0.1).text(2) == "0.00 [-0.10, 0.10]"


@pytest.mark.parametrize(
    ("result", "outcomes"),
    [
        (Interval(2, 1, 3), ("shown", "refuted", "not decided")),
        (Interval(-2, -3, -1), ("refuted", "shown", "refuted")),
        (Interval(0, -1, 1), ("not decided", "not decided", "not decided")),
        (Interval(1.2, 1.1, 1.3), ("shown", "refuted", "shown")),
    ],
)
def test_verdicts(result, outcomes):
    assert (above(result, 0.5), below(result, 0.5), within(result, 0.9, 1.5)) == outcomes


def test_a_claim_of_parts():
    assert all_of(["shown", "shown"]) == "shown"
    assert all_of(["shown", "not decided"]) == "not decided"
    assert all_of(["not decided", "refuted", "shown"]) == "refuted"
    assert all_of([]) == "not decided"


def test_that_figures_differ_is_never_refuted():
    assert [apart(Interval(0, *ends), 0) for ends in ((1, 2), (-2, -1), (-1, 1), (math.nan, math.nan))] == [
        "shown", "shown", "not decided", "not decided",
    ]  # fmt: skip


def test_an_interval_of_a_share_covers_it_at_least_as_often_as_it_says():
    rng = np.random.default_rng(0)
    result = [share(int(count), 12) for count in rng.binomial(12, 0.4, 2000)]
    assert np.mean([low <= 0.4 <= high for _, low, high in result]) > 0.95
    assert share(0, 12).low == 0
    np.testing.assert_allclose(share(0, 12).high, 1 - 0.025 ** (1 / 12))  # no case of 12
    assert math.isnan(share(0, 0).mean)


def test_a_figure_of_pairs_has_an_interval_over_these_pairs():
    arm = {"mean": [0.5, 0.5], "low": [0.49, 0.49], "high": [0.51, 0.51]}
    assert at(arm, 1) == Interval(0.5, 0.49, 0.51)
    values = [[0.9, 0.4], [0.7, 0.5], [0.8, 0.6]]
    assert at(arm | {"values": values}, 1) == interval([0.4, 0.5, 0.6])
    assert math.isnan(at({"mean": [None], "low": [None], "high": [None]}, 0).mean)


def test_an_interval_ends_where_its_quantity_does():
    rows = {
        seed: {"test_accuracy": value, "r2_joint": value, "test_loss": value} for seed, value in enumerate((0.1, 1.0))
    }
    low, high = interval([0.1, 1.0])[1:]
    assert low < 0
    assert high > 1
    assert average(rows, "test_accuracy") == Interval(0.55, 0, 1)
    assert average(rows, "r2_joint") == Interval(0.55, low, 1)
    assert average(rows, "test_loss") == Interval(0.55, 0, high)
    assert at({"values": [[0.1], [1.0]]}, 0) == Interval(0.55, 0, 1)
    with pytest.raises(ValueError, match="values to unpack"):  # nothing is known of its range
        average(rows, "seconds")


def test_differences_are_of_the_same_seeds():
    result = difference({0: 1.0, 1: 2.0, 2: 3.0}, {1: 1.5, 2: 2.5, 3: 9.0})
    assert result == Interval(0.5, 0.5, 0.5)


def row(gate, seed, noise=1.0, epoch=2, validation=0.5, loss=0.4, accuracy=0.9, **more):
    return {
        "gate": gate, "seed": seed, "noise_std": noise, "lam": 0.5, "c": 0.01, "p": 1.0, "epoch": epoch,
        "validation_loss": validation, "test_loss": loss, "test_accuracy": accuracy, "diverged_at": None,
    } | more  # fmt: skip


def planted(accuracies, early, losses):
    """Tables of both noises, three seeds: accuracy, loss after one epoch and final loss by gate."""
    rows = []
    for noise in paper.NOISES:
        for gate in GATES:
            for seed, wobble in enumerate((-0.0005, 0.0, 0.0005)):
                first = {"epoch": 1, "validation": early[gate] + wobble, "loss": None, "accuracy": None}
                rows.append(row(gate, seed, noise, **first))
                rows.append(row(gate, seed, noise, loss=losses[gate] + wobble, accuracy=accuracies[gate] + wobble))
    return rows


ACCURACY = {"sqs": 0.979, "bilinear": 0.974, "relu": 0.98, "gelu": 0.981, "silu": 0.99}
EARLY = {"sqs": 0.3, "bilinear": 0.4, "relu": 0.2, "gelu": 0.3, "silu": 0.3}
LOSSES = {"sqs": 0.1, "bilinear": 0.1, "relu": 0.2, "gelu": 0.1, "silu": 0.1}


def outcomes(section, place):
    return {verdict.claim: verdict.outcome for verdict in section.verdicts if place in verdict.claim}


def test_claims_of_accuracy_on_planted_tables():
    result = paper.accuracy("mnist", planted(ACCURACY, EARLY, LOSSES), {"bilinear": 0.978, "sqs": 0.979}, 1)
    assert outcomes(result, "noise 0.5") == {
        "Claim 1: bilinear reaches 0.978 on mnist, noise 0.5": "refuted",
        "Claim 1: sqs reaches 0.979 on mnist, noise 0.5": "shown",
        "Claim 1: sqs above bilinear on mnist, noise 0.5": "shown",
    }
    assert "| 1.0 | sqs | 0.9790 [0.9778, 0.9802] | 0.9785, 0.9790, 0.9795 | 0.979 |" in result.tables[0]


def test_claims_of_loss_on_planted_tables():
    result = outcomes(paper.loss({"mnist": planted(ACCURACY, EARLY, LOSSES)}), "noise 1.0")
    assert result == {
        "Claim 3: sqs has the lower loss after one epoch than relu, mnist, noise 1.0": "refuted",
        "Claim 3: sqs ends with a lower test loss than relu, mnist, noise 1.0": "shown",
        "Claim 3: sqs has the lower loss after one epoch than bilinear, mnist, noise 1.0": "shown",
        "Claim 3: sqs ends with a lower test loss than bilinear, mnist, noise 1.0": "not decided",
        "Claim 3: accuracy of sqs on par with gelu, or better, mnist, noise 1.0": "shown",
        "Claim 3: accuracy of sqs on par with silu, or better, mnist, noise 1.0": "refuted",
    }


def comparison(*means):
    arm = {"mean": list(means), "low": [mean - 0.05 for mean in means], "high": [mean + 0.05 for mean in means]}
    return {"rank_cosine": {"shared": arm, "random": arm}}


@pytest.mark.parametrize(
    ("means", "outcome"), [((0.9, 0.8, 0.6), "shown"), ((0.9, 0.3, 0.6), "refuted"), ((0.9, 0.8, 0.52), "not decided")]
)
def test_similarity_counts_every_rank(means, outcome):
    result = paper.similarity({"sqs": comparison(*means), "gelu": None}, "mnist")
    assert [verdict.outcome for verdict in result.verdicts] == [outcome]
    assert result.verdicts[0].found.mean == min(means)


def test_the_rank_that_decides_similarity_is_listed():
    """The second rank is surely too low; the third, whose mean is lower, is not."""
    means, halves = (0.9, 0.4, 0.35), (0.05, 0.05, 0.3)
    arm = {"mean": means, "low": [m - h for m, h in zip(means, halves, strict=True)]}
    arm["high"] = [m + h for m, h in zip(means, halves, strict=True)]
    (verdict,) = paper.similarity({"sqs": {"rank_cosine": {"shared": arm}}}, "mnist").verdicts
    assert (verdict.outcome, verdict.found.mean) == ("refuted", 0.4)


# Each pair is 1.2, on a machine that slows down: over one mean the ratios would be .8 to 1.6.
SECONDS = {1.0: [1.0, 1.5, 2.0], 2.0: [1.2, 1.8, 2.4]}


def test_failures_on_planted_tables():
    rows = [row("sqs", seed, lam=lam, c=0.01) for seed in range(3) for lam in (0.0, 0.5, 2.0, 5.0)]
    for own in rows[:8:4]:  # 2 of the 3 of λ = 0
        own |= {"test_loss": None, "diverged_at": 7}
    readings = {str(i): result | {"r2_joint": 0.9, "template": 0.5, "variation": 0.4} for i, result in enumerate(rows)}
    beside = {(0.5, 0.01): comparison(0.9, 0.9, 0.9), (2.0, 0.01): comparison(0.9, 0.9, 0.8), (5.0, 0.01): None}
    small = [row("sqs", seed, lam=lam) for seed in range(8) for lam in (0.0, 0.01)]
    result = paper.failures(rows, readings, beside, small, SECONDS, "a machine")
    assert [verdict.outcome for verdict in result.verdicts] == ["refuted", "refuted", "not decided", "shown"]
    assert "measured on: a machine." in result.text
    assert result.tables[0].splitlines()[2].startswith("| 0.0 | 0.01 | 2 | 0.9000 | 0.900")
    assert result.tables[0].splitlines()[-1].endswith("| – | – |")
    assert diverged(rows, lam=0.0) == 2
    assert column(final(rows, lam=0.0), "test_loss") == {2: 0.4}


@pytest.mark.parametrize(("seeds", "outcome"), [(0, "refuted"), (1, "not decided"), (8, "shown")])
def test_divergence_is_counted_by_seeds_whose_networks_are_not_independent(seeds, outcome):
    small = [row("sqs", seed, lam=lam) for seed in range(8) for lam in (0.0, 0.01)]
    for own in small[: 2 * seeds : 2]:  # of λ = 0 alone
        own |= {"test_loss": None, "diverged_at": 7}
    result = paper.failures([], {}, {}, small, SECONDS, "a machine").verdicts[0]
    assert (result.found.mean, result.outcome) == (seeds / 8, outcome)


def test_sections_of_networks_that_all_diverged_decide_nothing():
    gates = {gate: {} for gate in GATES}
    sections = (
        paper.similarity({"sqs": None}, "mnist"),
        beyond.calibration(gates, {"sqs": None}, "mnist", 1.0),
        beyond.along("lam", "Along λ", "λ", {"sqs": []}),
        beyond.defaults({(0.1, 0.01, 1.0): three(0.97)}, {"gelu": {}}),
        beyond.learnable({0.5: {}}, {0.5: three(0.97)}),
    )
    for section in sections:
        assert {verdict.outcome for verdict in section.verdicts} <= {"not decided"}


def test_language_and_stress_on_planted_tables():
    levels = {"sqs": 1.4, "bilinear": 1.5, "relu": 1.4, "gelu": 1.401, "silu": 1.3}
    bits = {gate: {seed: level + seed / 1000 for seed in range(3)} for gate, level in levels.items()}
    assert [verdict.outcome for verdict in paper.language(bits, "a machine").verdicts] == ["shown", "refuted"]
    better = bits | {"sqs": {seed: value - 0.2 for seed, value in bits["sqs"].items()}}
    assert [verdict.outcome for verdict in paper.language(better, "a machine").verdicts] == ["shown", "shown"]
    # A seed that one gate lacks counts for neither, and without a common seed nothing is decided.
    missing = bits | {"sqs": bits["sqs"] | {7: 9.0}, "silu": {8: 1.3}}
    assert [verdict.outcome for verdict in paper.language(missing, "a machine").verdicts] == ["shown", "not decided"]
    rows = [row(gate, seed, accuracy=ACCURACY[gate] + seed / 1e4) for gate in GATES for seed in range(3)]
    assert [verdict.outcome for verdict in paper.stress(rows).verdicts] == ["shown", "shown", "shown", "refuted"]


def test_templates_are_matched_with_their_own_class():
    rng = np.random.default_rng(0)
    templates = rng.normal(size=(4, 50))
    labels = np.arange(4000) % 4
    x = (templates[labels] + 0.5 * rng.normal(size=(4000, 50))).astype(np.float32)
    own, others = template_matches(-templates + templates.mean(0), x, labels)
    assert own > 0.99
    assert others < 0.5


def test_the_page_shows_every_verdict_and_picture(tmp_path):
    section = Section(
        "one",
        "One: a claim",
        "What was done.",
        [Verdict("a", "b > 0", Interval(1, 0.5, 1.5), "shown")],
        ["| x |"],
        None,
    )
    drawn = paper.accuracy("mnist", planted(ACCURACY, EARLY, LOSSES), {"sqs": 0.979}, 1)
    page = tmp_path / "docs" / "results" / "page.md"
    write_page(page, "Title", "Head.", [section, drawn], "Tail.", tmp_path / "docs" / "images" / "paper")
    text = page.read_text()
    assert "| [a](#one-a-claim) | b > 0 | 1.0000 [0.5000, 1.5000] | **shown** |" in text
    assert "![Claim 1: accuracy on mnist](../images/paper/accuracy_mnist.png)" in text
    assert (page.parent / "../images/paper/accuracy_mnist.png").resolve().stat().st_size > 5000


def test_every_plan_is_a_grid_that_can_be_trained():
    assert {name: len(members(*grid[:2])) for name, grid in FULL.items()} == {
        "mnist": 50, "fashion_mnist": 50, "sensitivity": 54, "extremes": 45, "small_lam": 12, "cifar10_jpeg": 15,
    }  # fmt: skip
    assert sum(len(members(*grid[:2])) for grid in BEYOND.values()) == 81
    assert set(QUICK) < set(FULL)
    for grid in (QUICK | QUICK_BEYOND).values():
        assert members(*grid[:2])


def reading(seed, accuracy, r2=0.99, agreement=0.98, identity=0.95, **more):
    return {
        "seed": seed, "accuracy": accuracy, "r2_joint": r2, "r2_identity": 0.5, "agreement_joint": agreement,
        "agreement_identity": identity, "template": 0.7, "auc": 0.9,
    } | more  # fmt: skip


def three(accuracy, **values):
    """Readings of three seeds, a little apart."""
    return {seed: reading(seed, accuracy + seed / 1e4, **values) for seed in range(3)}


def test_readability_of_gates_on_planted_readings():
    result = {gate: three(0.97) for gate in GATES} | {"relu": three(0.97, r2=0.9), "silu": three(0.97, identity=0.9)}
    section = beyond.calibration(result, {}, "mnist", 0.5)
    assert (section.name, section.verdicts[0].claim[-16:]) == ("calibration_mnist_0.5", "mnist, noise 0.5")
    outcomes = [verdict.outcome for verdict in section.verdicts]
    assert outcomes == ["shown"] * 5 + ["refuted", "refuted", "shown", "shown"]


def test_along_an_axis_the_ends_are_compared_seed_by_seed():
    arm = {"mean": [0.9, 0.8], "low": [0.85, 0.7], "high": [0.95, 0.85]}
    beside = {"rank_cosine": {"shared": arm}, "overlap": {"shared": arm}}
    points = [
        beyond.Point(0.1, three(0.98, r2=0.999) | {9: reading(9, 0.1)}, beside),
        beyond.Point(5.0, three(0.97, r2=0.999), None),
    ]
    result = beyond.along("lam", "Along λ", "λ", {"sqs": points})
    assert [verdict.outcome for verdict in result.verdicts] == ["shown", "not decided", "not decided"]
    np.testing.assert_allclose(result.verdicts[0].found, -0.01)
    assert "0.9000 [0.8500, 0.9500] | 0.8000 [0.7000, 0.8500] |" in result.tables[0]
    assert result.tables[0].splitlines()[-1].endswith("| – | – |")


def test_a_default_is_recommended_where_it_is_shown_to_be_better():
    cells = {
        beyond.DEFAULT: three(0.97),
        (0.1, 0.01, 1.0): three(0.96, identity=0.99),
        (1.0, 0.01, 1.0): three(0.9, r2=0.9, identity=0.9),
        (0.1, 0.1, 1.0): three(0.969, r2=0.995, identity=0.9),
        (2.0, 0.01, 2.0): {seed: reading(seed, 0.971 + (seed - 1) / 100, r2=0.5) for seed in range(3)},
    }
    result = beyond.defaults(cells, {"gelu": three(0.98)})
    outcomes = ["not decided", "shown", "shown", "shown", "refuted"]
    assert [verdict.outcome for verdict in result.verdicts] == outcomes
    rows = [line.split(" | ") for line in result.tables[0].splitlines()[2:]]
    usual, small, shifted, steep = "λ 0.5, c 0.01", "λ 0.1, c 0.01", "λ 0.1, c 0.1", "λ 2, c 0.01, p 2"
    assert [row[2] for row in rows] == [usual, shifted, small, shifted, usual]
    assert [row[3] for row in rows] == [steep, shifted, small, shifted, shifted]  # small is less accurate
    fronts = {line.split(" | ")[0]: line.split(" | ")[-1] for line in result.tables[1].splitlines()}
    assert "R², joint gains" in fronts["| gelu"]
    assert fronts["| λ 1, c 0.01"] == " |"
    alone = beyond.defaults({cell: cells[cell] for cell in (beyond.DEFAULT, (1.0, 0.01, 1.0))}, {})
    assert [verdict.outcome for verdict in alone.verdicts] == ["refuted"] * 3 + ["not decided"] * 2
    assert alone.verdicts[-1].claim.endswith("another setting beats the default")


def test_a_score_is_of_networks_that_have_every_part():
    cells = {beyond.DEFAULT: three(0.97), (0.1, 0.01, 1.0): three(0.98) | {1: reading(1, 0.98, r2=None)}}
    result = beyond.defaults(cells, {}).verdicts[1]
    np.testing.assert_allclose(result.found, 0.01 * 0.99)


def test_the_pareto_front_has_what_nothing_beats_in_both():
    rng = np.random.default_rng(0)
    places = {str(i): tuple(rng.random(2)) for i in range(200)}
    result = beyond.front(places | {"unknown": (math.nan, 2.0)})
    assert 1 < len(result) < 30
    assert [places[cell][1] for cell in result] == sorted((places[cell][1] for cell in result), reverse=True)
    for cell, (a, b) in places.items():
        assert (cell in result) != any(x > a and y > b for x, y in places.values())


def test_learnt_values_are_held_against_fixed_ones():
    learnt = {0.5: three(0.975, learnt_lam=0.8, learnt_c=0.02)}
    result = beyond.learnable(learnt, {0.5: three(0.97)})
    assert [verdict.outcome for verdict in result.verdicts] == ["shown", "refuted"]
    assert "| 0.5 | learnt | 0.800 [0.800, 0.800] | 0.020 [0.020, 0.020] |" in result.tables[0]
